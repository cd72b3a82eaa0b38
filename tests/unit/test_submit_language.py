"""The submit language: quoting and refusals. tests/pool proves the quoting in a real job."""

from __future__ import annotations

import classad2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from condorctl.condor import submit_language
from condorctl.errors import UserError


def test_harmless_words_stay_readable() -> None:
    words = ["python", "-m", "robust", "--keep=0.1", "a/b.pt"]
    assert submit_language.arguments(words) == '"python -m robust --keep=0.1 a/b.pt"'


def test_quotes_blanks_and_dollars_are_quoted() -> None:
    assert submit_language.arguments(["it's", 'a "b"', ""]) == "\"'it''s' 'a \"\"b\"\"' ''\""
    assert submit_language.arguments(["$5", "$$"]) == "\"'$(DOLLAR)5' '$$(DOLLARDOLLAR)'\""
    assert submit_language.arguments(["$(DOLLAR)$(X)"]) == ('"\'$$([""$""])(DOLLAR)$(DOLLAR)(X)\'"')
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
        "inc\\\nlude command : date",
        "inc\\ \nlude command : date",
        "inc\\\n# a remark\\\nlude command : date",
        "@include command : date",
        "if true\n:include command : date\nendif",
        "\vinclude command : date",
        "x = 1\\",
        "use feature : GPUs",
        "requirements = A\nRequirements = B",
        "x = \0",
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


def test_a_line_ends_at_a_line_feed_and_nowhere_else() -> None:
    words = submit_language.arguments(["a\x0bqueue", "b\u2028queue 2", "c\x85include x"])
    submit_language.check_text(f"executable = x\narguments = {words}\nqueue\n", "stage.sub")


@given(st.text(st.characters(codec="utf-8", exclude_characters="\n\r\0$")))
def test_text_of_an_attribute_is_the_string_that_htcondor_reads(text: str) -> None:
    if not text.startswith("="):
        assert classad2.ExprTree(submit_language.attribute(text, "+A")).eval() == text


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, "true"),
        (False, "false"),
        (3, "3"),
        (0.5, "0.5"),
        ("a b", '"a b"'),
        ("= A > 1", "A > 1"),
    ],
)
def test_an_attribute_keeps_its_type(value: str | bool | int | float, expected: str) -> None:
    assert submit_language.further("+A", value) == f"+A = {expected}"


@pytest.mark.parametrize(
    "text", ["= (", "=", "= A || B) || (true", "= $(X)", "a\nqueue", "$ENV(A)"]
)
def test_an_attribute_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"^\+A: "):
        submit_language.further("+A", text)


def test_no_queue_at_all_is_refused() -> None:
    with pytest.raises(UserError, match="exactly one 'queue'"):
        submit_language.check_text("executable = x", "stage.sub")
