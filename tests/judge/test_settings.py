"""Settings of judges: refused by name; and replies, read by the letter."""

from __future__ import annotations

import re
from pathlib import Path

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.service.conftest import start_server

from guerdon.reward.judge.settings import JudgeSettings, JudgeVerdictSettings
from guerdon.reward.judge.verdict import MAX_LINE, JudgeVerdictReader, NoJudgeVerdict
from guerdon.reward.models.loader import load_judge
from guerdon.serving.errors import CheckpointRefused, NotFound
from guerdon.v1 import admin_pb2

from .conftest import JudgeLoader, write_settings
from .test_judge import failed

URL = "http://127.0.0.1:1/v1"


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ('url = "u"', "model is missing"),
        ('modle = "m"', "unknown setting 'modle'; did you mean 'model'?"),
        ('url = "ftp://h/v1"\nmodel = "m"', "url must be http"),
        ('url = "https://me:secret@h/v1"\nmodel = "m"', "url must be http"),
        ('url = "http://h/v1"\nmodel = "m"\napi_key_variable = "K"', "url is http, which would"),
        ("votes = 3", "votes is 3, and temperature 0"),
        ("temperature = 1\nsend_temperature = false", "temperature is given, and send_temp"),
        (
            'limit_field = "n"',
            "limit_field is 'n', it must be one of max_tokens, max_completion_tok",
        ),
        ("votes = 0", "votes is 0, it must be positive"),
        ('ask = "rank"', "ask is 'rank', it must be one of score, compare"),
        ('template = "{{ prompt }}"', "template does not show {{ response }}"),
        ('template = "{{ prompt }}{{ response }}{{ anwser }}"', "template reads 'anwser'"),
        (
            'template = "{{ prompt }}{{ response[:9] }}"',
            "template: the judge's template leaves out",
        ),
        ('template = "{{ prompt "', "template is broken"),
        ('template_file = "missing.jinja"', "template_file .* cannot be read"),
        ('api_key_file = "missing"', "api_key_file: .*/missing cannot be read"),
        ('api_key_variable = "GUERDON_NO_SUCH"', r"api_key_variable: \$GUERDON_NO_SUCH holds no"),
        ("[verdict]\nlowest = 5\nhighest = 5", "verdict: lowest is 5 and highest 5"),
        ("[verdict]\npattern = '(a'", "verdict: pattern is no regular expression"),
        ("[verdict]\npattern = 'a'", "verdict: pattern has 0 groups"),
        ("[verdict]\npattern = '(a)'", "verdict.pattern needs a template"),
        ('ask = "compare"\n[verdict.values]\nA = 1\nB = 0', "verdict.values of a judge that comp"),
        ("[limits]\nbudget_tokens = 0", "limits: budget_tokens is 0, it must be positive"),
        ("[extra]\nn = 2", "extra.n is made of other settings"),
        ("[extra]\nmax_completion_tokens = 2", "extra.max_completion_tokens is made of other"),
        ("[extra]\nd = 2024-01-01", "extra.d is a date, which JSON has not"),
        ("[extra.a]\nb = [1, inf]", r"extra.a.b\[1\] is not a finite number"),
        ('control_tokens = ["("]', r"control_tokens\[0\]: "),
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_name(
    tmp_path: Path, toml: str, message: str
) -> None:
    file = tmp_path / "judge.toml"
    needed = "" if "url" in toml or "modle" in toml else f'url = "{URL}"\nmodel = "m"\n'
    file.write_text(needed + toml)
    with pytest.raises(CheckpointRefused, match=message):
        load_judge(file, "j")


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="there is no file"):
        load_judge(tmp_path / "judge.toml", "j")


def test_the_revision_tells_every_setting_but_where_the_key_is(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("k")
    template = tmp_path / "t.jinja"
    template.write_text("{{ prompt }}{{ response }}")

    def revision(extra: str = "", **settings: object) -> str:
        file = write_settings(tmp_path / "judge.toml", URL, extra, **settings)
        return load_judge(file, "j").info.revision

    plain = revision()
    assert plain == revision(api_key_file=str(tmp_path / "key"))
    own = revision(template_file="t.jinja")
    template.write_text("{{ prompt }} {{ response }}")
    changed = revision(template_file="t.jinja")
    others = [revision(temperature=0.5), revision("[limits]\ntries = 2\n"), own, changed]
    assert len({plain, *others}) == 5


async def test_administration_loads_the_settings_that_are_named_alone(tmp_path: Path) -> None:
    known = write_settings(tmp_path / "known.toml", URL)
    other = write_settings(tmp_path / "other.toml", URL)
    for allowed in ([], [str(tmp_path), str(known)]):
        models = {"j": str(known)}
        async with start_server(JudgeLoader(), models=models, load_from=allowed) as run:
            request = admin_pb2.LoadModelRequest(name="k", path=str(known))
            assert (await run.admin.LoadModel(request)).model.name == "k"
            request = admin_pb2.LoadModelRequest(name="o", path=str(other))
            error = await failed(run.admin.LoadModel(request))
            assert error.code() is grpc.StatusCode.PERMISSION_DENIED


SETTINGS = JudgeSettings(url=URL, model="m")
LINES = st.one_of(
    st.text(max_size=20),
    st.builds(
        "{}{}{}".format,
        st.sampled_from(["Score: ", "score: ", "Score:", "> Score: ", "\u2028Score: "]),
        st.sampled_from(["1", "7", "10", "11", "-1", "3.5", "1e1", "٣", "inf", "7 8"]),
        st.sampled_from(["", ".", " ", "\r"]),
    ),
)


@given(st.lists(LINES, max_size=5).map("\n".join))
def test_a_number_is_the_last_line_and_the_only_one(reply: str) -> None:
    try:
        number = JudgeVerdictReader(SETTINGS).read(reply)
    except NoJudgeVerdict:
        return
    lines = [line.strip() for line in reply.splitlines() if line.strip()]
    spoken = {line for line in lines if re.fullmatch(r"Score: -?[0-9]+(\.[0-9]+)?", line)}
    assert spoken == {lines[-1]}
    assert number == float(lines[-1].removeprefix("Score: "))
    assert 1 <= number <= 10


def test_a_line_that_is_very_long_is_no_verdict() -> None:
    verdict = JudgeVerdictSettings(pattern=r"x*Score: (\d+)")
    settings = JudgeSettings(url=URL, model="m", verdict=verdict, template="t")
    reader = JudgeVerdictReader(settings)
    assert reader.read("x" * 100 + "Score: 5") == 5.0
    with pytest.raises(NoJudgeVerdict):
        reader.read("x" * MAX_LINE + "Score: 5")
