"""The submit language: quoting and refusals. tests/pool proves the quoting in a real job."""

from __future__ import annotations

import pytest

from condorctl import submit_language
from condorctl.errors import UserError


def test_harmless_words_stay_readable() -> None:
    words = ["python", "-m", "robust", "--keep=0.1", "a/b.pt"]
    assert submit_language.arguments(words) == '"python -m robust --keep=0.1 a/b.pt"'


def test_quotes_blanks_and_dollars_are_quoted() -> None:
    assert submit_language.arguments(["it's", 'a "b"', ""]) == "\"'it''s' 'a \"\"b\"\"' ''\""
    assert submit_language.arguments(["$5", "$$"]) == "\"'$(DOLLAR)5' '$$(DOLLARDOLLAR)'\""
    assert submit_language.environment({"A": "b c"}) == "\"A='b c'\""


@pytest.mark.parametrize("name", ["a,b", "a;b", "a=b", 'a"b', "$(X)", " a", "a\tb"])
def test_a_file_name_that_no_list_can_carry_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="rename it"):
        submit_language.file_list([name])


@pytest.mark.parametrize(
    "line",
    [
        "include command : touch hacked",
        "Include : other.sub",
        "  INCLUDE COMMAND into x : date",
        "include\\\n command : date",
        "use feature : GPUs",
        "queue",
        "queue 5",
        "queue x from seq 3 |",
        "x = $ENV(HOME)",
        "x = $RANDOM_CHOICE(a,b)",
        "x = $$([1+1])",
        "x = $(HOME)",
        "x = $INT(A)",
    ],
)
def test_text_that_would_run_or_expand_is_refused(line: str) -> None:
    with pytest.raises(UserError, match=r"stage\.sub"):
        submit_language.check_text(f"executable = x\n{line}\nqueue\n", "stage.sub")


def test_what_a_template_needs_is_allowed() -> None:
    text = (
        '# include is a word\noutput = a/$(ClusterId).out\n+X = 1\narguments = "$(DOLLAR)"\nqueue'
    )
    submit_language.check_text(text, "stage.sub")


def test_no_queue_at_all_is_refused() -> None:
    with pytest.raises(UserError, match="exactly one 'queue'"):
        submit_language.check_text("executable = x", "stage.sub")
