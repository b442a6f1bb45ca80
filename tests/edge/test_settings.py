from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from edge.base.errors import SettingsError
from edge.base.strict_yaml import known_paths, read_yaml, validate
from edge.run import build_parser, read_settings
from edge.settings import Settings
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
        ("brokr: {url: '-'}", "unknown setting 'brokr'; did you mean 'broker'?"),
        ("window: {secnods: 5}", "did you mean 'window.seconds'?"),
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
        ("a: " + "[" * 5000, "node.yaml"),
        ("runtime: {state: ~no-such-user/x}", "no such user"),
        ("broker: {tls: {key: a.pem}}", "needs certificate and key together"),
        ("camera: [1, 2]", "'camera'"),
        ("- camera", "must hold 'name: value' lines"),
        ("camera: {fps: 30\n", "node.yaml line"),
        ("camera: {fps: 20}\ncamera: {fps: 30}", "key 'camera' appears twice"),
        ("camera: {?: 1}", "node.yaml"),
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
