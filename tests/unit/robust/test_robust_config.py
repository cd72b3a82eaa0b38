"""Presets, overrides and what they refuse."""

from __future__ import annotations

import pytest

from condorctl.errors import UserError
from robust.cli import main
from robust.config import PRESETS, from_dict, load_preset, override, to_dict
from robust.options import SECTIONS, Config


@pytest.mark.parametrize("name", sorted(path.stem for path in PRESETS.glob("*.toml")))
def test_every_preset_is_complete(name: str) -> None:
    config = load_preset(name)
    assert from_dict(to_dict(config), where="itself") == config


def test_fractions_are_exact() -> None:
    assert load_preset("smoke").pretrain.alpha == 1 / 30
    for text in ("8/255", '"8/255"', " 8 / 255 "):
        config = override(load_preset("smoke"), [f"adversary.epsilon={text}"], "train")
        assert config.adversary.epsilon == 8 / 255


def test_override_replaces_one_value() -> None:
    config = override(load_preset("smoke"), ["train.epochs=3", "model.widths=[8, 16, 4]"], "train")
    assert config.train.epochs == 3
    assert config.model.widths == (8, 16, 4)
    assert config.score == load_preset("smoke").score


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.epochs", "write it as section.key=value"),
        ("epochs=3", "write it as section.key=value"),
        ("train.epoch=3", "reads no option train.epoch"),
        ("score.epochs=3", "reads no option score.epochs"),
        ("train.epochs=0", "must lie in [1, inf]"),
        ("train.epochs=2.5", "expected a whole number"),
        ("train.epochs=inf", "expected a finite number"),
        ("train.epochs=1\nseed=2", "expected a number"),
        ("train.epochs=many", "expected a number"),
        ("train.epochs=true", "expected a number"),
        ("train.lr=nan", "expected a finite number"),
        ("adversary.epsilon=1/0", "expected a number"),
        ("adversary.epsilon=2", "must lie in [0, 1]"),
        ("train.trainer=magic", "choose from trades, pgd, plain"),
        ("train.milestones=[0.5, 'x']", "expected a number"),
        ("model.normalise=1", "expected true or false"),
        ("model.widths=8", "expected a list"),
        ("model.widths=[]", "must be of one length"),
        ("model.blocks=[1, 1]", "must be of one length"),
        ("model.widths=[8, 0]", "must lie in [1, 65536]"),
        ("model.widths=[8, 1000000000000]", "must lie in [1, 65536]"),
        ("train.lr=inf", "expected a finite number"),
        ("train.lr=1e999", "expected a finite number"),
        ('train.lr="1e999999999"', "expected a finite number"),
        ("adversary.epsilon=1/2/3", "expected a number"),
        ("train.epochs=" + "9" * 400, "expected a finite number"),
        ("train.epochs=" + "9" * 5000, "expected a finite number"),
        ("model.widths=" + "[" * 100_000, "expected a list"),
        ("data.split_seed=4294967296", "must lie in [0, 4294967295]"),
        ("augment.pad=1000000000", "must lie in [0, 64]"),
    ],
)
def test_bad_settings_are_refused(setting: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        override(load_preset("smoke"), [setting], "train")
    assert message in str(caught.value)
    assert setting.partition("=")[0] in str(caught.value)


def test_options_that_contradict_each_other_are_refused() -> None:
    smoke = load_preset("smoke")
    with pytest.raises(UserError, match=r"set linear\.finetune=true"):
        override(smoke, ["linear.contrastive=true"], "linear")
    with pytest.raises(UserError, match=r"evaluate\.pgd_restarts must be of one length"):
        override(smoke, ["evaluate.pgd_steps=[20]"], "evaluate")
    with pytest.raises(UserError, match=r"model\.widths is empty"):
        override(smoke, ["model.blocks=[]", "model.widths=[]"], "train")
    attacks = override(smoke, ['evaluate.attacks=["square", "l2"]'], "evaluate").evaluate.attacks
    assert attacks == ("square", "l2")
    with pytest.raises(UserError, match="choose from pgd, l2, l1, square, autoattack"):
        override(smoke, ['evaluate.attacks=["fgsm"]'], "evaluate")


def test_a_preset_must_set_every_option_and_no_other() -> None:
    values = to_dict(load_preset("smoke"))
    del values["train"]["lr"]
    with pytest.raises(UserError, match=r"\[train\]: lr is missing"):
        from_dict(values, where="mine.toml")
    values = to_dict(load_preset("smoke"))
    values["prune"]["flor"] = 3
    with pytest.raises(UserError, match=r"mine.toml: \[prune\]: unknown key flor"):
        from_dict(values, where="mine.toml")
    with pytest.raises(UserError, match="expected a table"):
        from_dict({**to_dict(load_preset("smoke")), "prune": 3}, where="mine.toml")


def test_an_old_checkpoint_lacks_what_came_later_and_was_trained_without_it() -> None:
    values = to_dict(load_preset("smoke"))
    del values["compute"]["training"]
    assert from_dict(values, where="old.pt", old=True).compute.training == "fp32"
    with pytest.raises(UserError, match=r"mine.toml: \[compute\]: training is missing"):
        from_dict(values, where="mine.toml")
    del values["train"]["lr"]
    with pytest.raises(UserError, match=r"old.pt: \[train\]: lr is missing"):
        from_dict(values, where="old.pt", old=True)


@pytest.mark.parametrize("stage", SECTIONS)
def test_help_explains_every_option_with_its_source(
    stage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([stage, "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    config: Config = load_preset("smoke")
    for section in SECTIONS[stage]:
        for name in to_dict(config)[section]:
            line = next(
                row for row in text.splitlines() if row.split()[:1] == [f"{section}.{name}"]
            )
            assert line.endswith("]"), f"{section}.{name} has no source"
