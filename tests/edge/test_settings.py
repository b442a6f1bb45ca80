from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
import yaml

from edge.base.errors import SettingsError
from edge.base.strict_yaml import known_paths, read_yaml, validate
from edge.run import build_parser, read_settings
from edge.settings import Node, Settings
from support.paths import ROOT


def problem(text: str, tmp_path: Path) -> str:
    path = tmp_path / "node.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError) as caught:
        validate(Settings, read_yaml(path), path.name)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_shipped_node_yaml_is_the_defaults_and_names_every_setting() -> None:
    path = ROOT / "systemd" / "node.yaml"
    assert validate(Settings, read_yaml(path), "node.yaml") == Settings()
    text = path.read_text()
    for name in known_paths(Settings):
        assert f"{name.split('.')[-1]}:" in text, name


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("camera: {widht: 640}", "unknown setting 'camera.widht'; did you mean 'camera.width'?"),
        ("camera: {source: rtsp://192.0.2.1/a,Gh3imX7}", "a setting's name is none of ours"),
        ("brokr: {url: '-'}", "unknown setting 'brokr'; did you mean 'broker'?"),
        ("window: {secnods: 5}", "did you mean 'window.seconds'?"),
        ("window: 5", "'window' is a section: its settings go below it, such as 'window.seconds'"),
        ("broker: mqtt://192.0.2.10", "'broker' is a section: its settings go below it"),
        ("privacy: {hours: mon-fri}", "'privacy.hours' wants a list: write it in brackets, [...]"),
        ("window: {seconds: fast}", "'window.seconds' input should be a valid number, not 'fast'"),
        ("window: {seconds: 0}", "'window.seconds' input should be greater than or equal to 1"),
        ("window: {seconds: .nan}", "'window.seconds'"),
        ("privacy: {min_group: 2.5}", "'privacy.min_group' input should be a valid integer"),
        ("privacy: {min_group: yes}", "'privacy.min_group' input should be a valid integer"),
        ("privacy: {min_group: 3, min_cell: 4}", "'privacy' min_cell must not be above min_group"),
        ("node: {room: Room 12}", "'node.room' may hold only a-z, 0-9 and '-'"),
        ("detector: {width: 500}", "'detector.width' input should be a multiple of 32"),
        ("broker: {url: http://x}", "'broker' url must be mqtt://"),
        ("broker: {url: 'mqtt://u:p@x'}", "must not hold a password"),
        ("broker: {url: 'mqtt://u:pa/ss@x'}", "must not hold a password"),
        ("broker: {url: 'mqtt://x:99999'}", "'broker' url must be"),
        ("broker: {url: 'mqtt://a..b'}", "'broker' url must be"),
        ("node: {site: 2024-13-45}", "node.yaml: holds a value that cannot be read"),
        ("a: " + "[" * 1000, "node.yaml"),
        ("runtime: {state: ~no-such-user/x}", "no such user"),
        ("broker: {tls: {key: a.pem}}", "needs certificate and key together"),
        ("camera: [1, 2]", "'camera'"),
        ("- camera", "must hold 'name: value' lines"),
        ("camera: {fps: 30\n", "node.yaml line"),
        ("camera: {fps: 20}\ncamera: {fps: 30}", "key 'camera' appears twice"),
        ("camera: {?: 1}", "node.yaml"),
        ("privacy: {legal_basis: 'medical'}\nruntime: {state: \"a\\0b\"}", "(line 2: "),
        ('privacy: {legal_basis: "safety: \\ud83d\\ude00"}', "write the sign itself"),
        ('broker: {url: "mqtt://192.0.\\n2.10"}', "'broker' url must be"),
        (
            "broker: {username: " + "a" * 70_000 + "}",
            "'broker.username' string should have at most",
        ),
        ("camera: {width: 0x" + "f" * 5000 + "}", "'camera.width' input should be less than"),
        ("a: &a {seconds: 5}\nwindow: {<<: *a}", "<< is not read: write the settings out"),
        ("a: &x [*x]", "node.yaml"),
        ("camera: !!python/object/apply:os.system ['true']", "node.yaml"),
    ],
)
def test_a_fault_is_one_line_that_names_the_path(text: str, expected: str, tmp_path: Path) -> None:
    assert expected in problem(text, tmp_path)


def test_binary_and_missing_files_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "node.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingsError, match="UTF-8"):
        read_yaml(path)
    with pytest.raises(SettingsError, match="cannot be read"):
        read_yaml(tmp_path / "absent.yaml")
    with pytest.raises(SettingsError, match="cannot be read"):
        read_yaml(tmp_path)


def test_an_unquoted_camera_index_is_read_as_meant(tmp_path: Path) -> None:
    settings = validate(Settings, yaml.safe_load("camera: {source: 2}"), "x")
    assert settings.camera.source == "2"


def test_a_section_with_all_its_lines_commented_out_is_an_empty_one(tmp_path: Path) -> None:
    path = tmp_path / "node.yaml"
    path.write_text("broker:\n  # url: mqtt://x\ncamera: {source: test}\n")
    assert validate(Settings, read_yaml(path), "x").broker.url == "-"


def test_no_message_repeats_a_password(tmp_path: Path) -> None:
    for url in ("mqtt://u:s3cret@x", "mqtt://u:s3/cret@x", "http://u:s3cret@x"):
        assert "cret" not in problem(f"broker: {{url: '{url}'}}", tmp_path)


def test_options_win_over_the_file_and_faults_name_their_origin(tmp_path: Path) -> None:
    path = tmp_path / "node.yaml"
    path.write_text("camera: {source: test}\nwindow: {seconds: 20}\nprivacy: {min_group: 8}\n")
    parse = build_parser().parse_args
    settings = read_settings(parse(["--config", str(path), "--window", "4", "--min-group", "1"]))
    assert settings.camera.source == "test"
    assert settings.window.seconds == 4
    assert settings.privacy.min_group == 1
    with pytest.raises(SettingsError, match=r"options: 'window.seconds'"):
        read_settings(parse(["--config", str(path), "--window", "0"]))
    path.write_text("windw: {}\n")
    with pytest.raises(SettingsError, match=str(path)):
        read_settings(parse(["--config", str(path)]))


def test_a_name_that_holds_a_line_end_or_steers_a_terminal_stays_one_line(tmp_path: Path) -> None:
    said = problem('camera: {"wid\\nth\\e[2J": 1}', tmp_path)
    assert "unknown setting 'camera.wid th?[2J'" in said


@pytest.mark.parametrize(
    ("value", "kind"),
    [("101", "a number"), ("0101", "a number"), ("0x1F", "a number"), ("1_0", "a number"),
     ("10:30", "a number"), ("1.5", "a number"), ("on", "yes or no"), ("no", "yes or no"),
     ("2026-11-28", "a date"), ("2026-11-28 10:00:00", "a date")],
)  # fmt: skip
def test_a_room_that_yaml_reads_as_something_else_is_to_be_quoted(
    tmp_path: Path, value: str, kind: str
) -> None:
    """Read as text it would be a surprise: YAML makes 65 of 0101, and true of on."""
    said = problem(f"node: {{room: {value}}}", tmp_path)
    assert f"'node.room' must be text, and YAML reads this as {kind}: put it in quotes" in said
    whole = f'node: {{room: "{value}"}}'
    if value.isdigit():
        path = tmp_path / "node.yaml"
        path.write_text(whole)
        assert validate(Settings, read_yaml(path), "x").node.room == value


def test_what_yaml_reads_as_text_needs_no_quotes(tmp_path: Path) -> None:
    path = tmp_path / "node.yaml"
    for value in ("1e3", "101a", "2a", "room-101"):
        path.write_text(f"node: {{room: {value}}}")
        assert validate(Settings, read_yaml(path), "x").node.room == value
    assert "'node.room' is empty: give it a text" in problem("node: {room: }", tmp_path)


def test_a_node_path_is_at_most_as_long_as_a_message_takes(tmp_path: Path) -> None:
    fits = 200 - len("local/room/")
    assert len(Settings(node=Node(name="a" * fits)).node.path) == 200
    said = problem(f"node: {{name: {'a' * (fits + 1)}}}", tmp_path)
    assert "'node' site, room and name have 201 characters" in said
    assert "shorten one" in said


def test_tls_with_an_address_that_is_plain_text_is_refused(tmp_path: Path) -> None:
    tls = "tls: {ca: /etc/ssl/ca.pem}"
    assert "url is mqtt://, which is plain text; write mqtts:// or" in problem(
        f"broker: {{url: mqtt://x, {tls}}}", tmp_path
    )
    path = tmp_path / "node.yaml"
    path.write_text(f"broker: {{{tls}}}\n")
    parse = build_parser().parse_args
    with pytest.raises(SettingsError, match=r"options: 'broker' tls is set, and url is mqtt://"):
        read_settings(parse(["--config", str(path), "--broker", "mqtt://x"]))
    assert read_settings(parse(["--config", str(path), "--broker", "mqtts://x"])).broker.tls.ca
    assert read_settings(parse(["--config", str(path)])).broker.url == "-"


def laughs(lines: int, kind: str) -> str:
    """Each line stands for nine times the one before it."""
    opened, closed = ("[", "]") if kind == "list" else ("{", "}")
    text = f"l0: &l0 {opened}{'a, b' if kind == 'list' else 'a: 1'}{closed}\n"
    for n in range(1, lines):
        inner = ", ".join(f"*l{n - 1}" if kind == "list" else f"k{i}: *l{n - 1}" for i in range(9))
        text += f"l{n}: &l{n} {opened}{inner}{closed}\n"
    return text + f"camera: *l{lines - 1}\n"


@pytest.mark.parametrize("kind", ["list", "map"])
@pytest.mark.parametrize("lines", [5, 12, 200])
def test_aliases_of_aliases_are_bounded(tmp_path: Path, lines: int, kind: str) -> None:
    tracemalloc.start()
    assert "its aliases stand for more than 10000 values" in problem(laughs(lines, kind), tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 20_000_000
    tracemalloc.stop()


def test_an_alias_of_itself_and_a_file_without_end_are_one_line(tmp_path: Path) -> None:
    assert "aliases stand for more" in problem("camera: &a {b: [*a]}", tmp_path)
    assert "is larger than 1 MiB" in problem("#" * 2**21, tmp_path)


def test_an_honest_alias_works(tmp_path: Path) -> None:
    path = tmp_path / "node.yaml"
    path.write_text("node: {site: &name school, room: *name}\n")
    assert validate(Settings, read_yaml(path), "x").node.room == "school"


def test_frames_to_confirm_of_an_older_file_are_read_as_seconds() -> None:
    for frames, seconds in ((1, 0.0), (3, 0.1), (60, 2.95)):
        data = {"tracker": {"confirm_frames": frames, "hold_seconds": 0.3}}
        tracker = validate(Settings, data, "node.yaml").tracker
        assert (tracker.confirm_seconds, tracker.hold_seconds) == (seconds, 0.3)
    assert Settings().tracker.confirm_seconds == 0.1
    for wrong in (0, 61, 2.5, "3", None, True):
        with pytest.raises(SettingsError, match=r"write confirm_seconds: 0\.1") as caught:
            validate(Settings, {"tracker": {"confirm_frames": wrong}}, "node.yaml")
        assert "\n" not in str(caught.value)
    both = {"tracker": {"confirm_frames": 3, "confirm_seconds": 0.1}}
    with pytest.raises(SettingsError, match="confirm_frames is confirm_seconds now"):
        validate(Settings, both, "node.yaml")


@pytest.mark.parametrize(
    ("given", "rate"), [("auto", 5.0), (None, 5.0), (0.5, 0.5), (30.0, 30.0), (240.0, 240.0)]
)
def test_the_analysis_rate_is_a_number_or_auto(given: object, rate: float) -> None:
    data = {"camera": {"analyse_per_second": given}}
    assert validate(Settings, data, "node.yaml").camera.rate == rate


@pytest.mark.parametrize("wrong", [0, 0.4, 241, -5, "fast", "7", True, [5]])
def test_an_impossible_analysis_rate_is_one_line(wrong: object) -> None:
    with pytest.raises(SettingsError, match=r"camera\.analyse_per_second") as caught:
        validate(Settings, {"camera": {"analyse_per_second": wrong}}, "node.yaml")
    assert "\n" not in str(caught.value)


def test_a_name_that_is_not_utf8_is_one_line_that_says_what_to_do() -> None:
    with pytest.raises(
        SettingsError, match=r"'camera.source' holds bytes that are not UTF-8: rename"
    ):
        validate(Settings, {"camera": {"source": "Kl\udce4sse.mp4"}}, "options")
