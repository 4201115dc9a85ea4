"""From a command line to a checked config."""

from pathlib import Path

import pytest

from jaxmerge import app, settings

ROOT = Path(__file__).resolve().parent.parent
MERGE = str(ROOT / "configs" / "digits_merge.py")

pytestmark = pytest.mark.usefixtures("own_folder")


def parse(*arguments):
    return settings.parse(["main.py", *arguments])


def test_overrides_are_read_in_every_spelling():
    asked = parse(
        "--config.merge.etas=0.2,0.3",
        *("--config.sampling.sampler", "heun,ode"),
        "--noconfig.experts.align_pixel_scale",
        "--config.likelihood.tolerance=1e-3",
        f"--config={MERGE}",
    )
    assert asked.config.merge.etas == (0.2, 0.3)
    assert asked.config.sampling.sampler == ("heun", "ode")
    assert asked.config.experts.align_pixel_scale is False
    assert asked.config.likelihood.tolerance == 1e-3
    with pytest.raises(AttributeError, match="locked"):
        asked.config.new_key = 1


def test_workdir_is_named_after_the_config_and_its_overrides():
    assert parse("--config", MERGE).workdir == Path("runs/digits_merge")
    assert parse("--config", MERGE, "--config.seed=0").workdir == Path("runs/digits_merge")
    assert parse("--config", MERGE, "--config.seed=3").workdir == Path("runs/digits_merge-seed=3")
    ambiguous = parse("--config", MERGE, "--config.bound.n_images=20")
    assert ambiguous.workdir == Path("runs/digits_merge-bound.n_images=20")
    assert parse("--config", f"{MERGE}:full").workdir == Path("runs/digits_merge-full")
    assert parse("--config", MERGE, "--workdir", "here").workdir == Path("here")
    many = [f"--config.likelihood.{key}=7" for key in ("n_images", "draws", "probes", "batch_size")]
    assert len(parse("--config", MERGE, *many).workdir.name) < 100


def test_full_variant_scores_all_test_images_with_both_samplers():
    full = parse("--config", f"{MERGE}:full").config
    assert full.likelihood.n_images == 360
    assert full.sampling.sampler == ("heun", "ancestral")
    assert full.sampling.seeds == full.sampling.seeds_other == full.sampling.ancestral_seeds == 5


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "no config given"),
        (["--config"], "needs the path of a config"),
        (["--config", "configs/digit_merge.py"], "no config file 'configs/digit_merge.py'"),
        (["--config", f"{MERGE}:fulll"], "has the variant 'full' only, got 'fulll'"),
        (["--config", MERGE, "--config.sampling.n_sample=5"], "did you mean 'sampling.n_samples'"),
        (["--config", MERGE, "--config.n_probes=5"], "did you mean 'likelihood.probes'"),
        (["--config", MERGE, "--config.sampling=5"], "'sampling' is a section"),
        (["--config", MERGE, "--config.seed=abc"], "seed must be of type int, got 'abc'"),
        (["--config", MERGE, "--config.likelihood.n_images=1.5"], "n_images must be of type int, got '1.5'"),
        (["--config", MERGE, "--config.likelihood.tolerance=x"], "tolerance must be of type float"),
        (["--config", MERGE, "--config.experts.align_pixel_scale=maybe"], "must be of type bool"),
        (["--config", MERGE, "--config.seed"], "Missing value for flag --config.seed"),
        (["--config", MERGE, "--config.seed=-1"], "seed must be at least 0, got -1"),
        (["--config", MERGE, "--config.likelihood.probes=0"], "likelihood.probes must be at least 1"),
        (["--config", MERGE, "--config.likelihood.tolerance=nan"], "must be a finite number"),
        (["--config", MERGE, "--config.likelihood.rtol=2"], "likelihood.rtol must lie between 0 and 1"),
        (
            ["--config", MERGE, "--config.training.learning_rate=-1"],
            "training.learning_rate must lie above 0",
        ),
        (["--config", MERGE, "--config.training.ema_decay=1.5"], "must be at least 0 and below 1, got 1.5"),
        (["--config", MERGE, "--config.training.weight_decay=-1"], "weight_decay must be at least 0, got -1"),
        (["--config", MERGE, "--config.expert.dropout=1.0"], "dropout must be at least 0 and below 1, got 1"),
        (["--config", MERGE, "--config.expert.channel_mult=1,0"], "expert.channel_mult must be at least 1"),
        (["--config", MERGE, "--config.moe.count=1"], "moe.count must be at least 2, got 1"),
        (["--config", MERGE, "--config.moe.counts=1,"], "moe.counts must be at least 2, got 1"),
        (
            ["--config", MERGE, "--config.moe.counts=x,"],
            "moe.counts must be whole numbers, as in 2,4, got x",
        ),
        (
            ["--config", MERGE, "--config.moe.counts=2.5"],
            "moe.counts must be whole numbers, as in 2,4, got 2.5",
        ),
        (
            ["--config", MERGE, "--config.moe.widths=8,x"],
            "moe.widths must be whole numbers, as in 2,4, got 8,x",
        ),
        (["--config", MERGE, "--config.moe.slices=3"], "moe.slices must be names, got 3"),
        (["--config", MERGE, "--config.sampling.sampler="], "sampling.sampler must name at least one value"),
        (["--config", MERGE, "--config.likelihood.trace=exakt"], "must be one of hutchinson, exact"),
        (["--config", MERGE, "--config.sampling.sampler=heun,euler"], "must be one of heun, ode, ancestral"),
        (["--config", MERGE, "--config.merge.etas=1.5"], "numbers from 0 to 1, got 1.5"),
        (["--config", MERGE, "--config.merge.etas=all"], "numbers from 0 to 1, got 'all'"),
        (["--config", MERGE, "--workdri=x"], "Unknown command line flag 'workdri'"),
        (["--config", MERGE, "stray"], "unexpected argument 'stray'"),
    ],
)
def test_a_wrong_command_line_gets_one_sentence(arguments, expected, capsys):
    assert app.main(["main.py", *arguments]) == 1
    printed = capsys.readouterr()
    assert expected in printed.err
    assert printed.err.count("\n") == 1
    assert printed.err.startswith("error: ")
    assert printed.out == ""
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def get_config(:", "SyntaxError"),
        ("import no_such_module", "no_such_module"),
        ("x = 1", "AttributeError"),
        ("def get_config(): return 3", "must return a ConfigDict, got int"),
    ],
)
def test_a_broken_config_file_is_named_with_its_reason(text, expected, capsys):
    Path("mine.py").write_text(text)
    assert app.main(["main.py", "--config=mine.py"]) == 1
    message = capsys.readouterr().err
    assert "mine.py" in message
    assert expected in message
    assert message.count("\n") == 1


def test_help_is_no_error(capsys):
    assert app.main(["main.py", "--help"]) == 0
    assert "--config" in capsys.readouterr().out


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda path: path.stem)
def test_every_config_uses_explained_keys_and_known_values(path):
    from configs import default

    config = parse("--config", str(path)).config
    assert (
        settings.flatten(config.to_dict()).keys() == settings.flatten(default.get_config().to_dict()).keys()
    )


def test_every_default_key_is_explained():
    text = (ROOT / "configs" / "default.py").read_text()
    code = text.splitlines()
    for number, line in enumerate(code):
        if line.strip().startswith('"') and '": ' in line:
            above = code[number - 1].strip()
            assert above.startswith(("#", '"', "{")), line
