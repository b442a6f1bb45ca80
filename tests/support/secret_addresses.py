"""Addresses as cameras, brokers and databases have them, with one marker wherever a password can be."""

from __future__ import annotations

from urllib.parse import quote

from hypothesis import strategies as st

MARKER = "Gh3imX7"
_schemes = st.sampled_from(
    ["rtsp", "rtsps", "http", "https", "RTSP", "mqtt", "mqtts", "ftp", "srt", "tcp", "x-cam"]
) | st.sampled_from(["postgresql", "postgresql+psycopg"])
_hosts = st.sampled_from(["10.0.0.7", "cam.school", "[fd00::7]", "cam:554", "10.0.0.7:8554"])
# What people put around a password without percent-encoding it.
_noise = st.text("aZ9.-_~/?#@:;&=+!$%,'\"()[]<>|\\^*", max_size=4)
_passwords = st.builds(lambda a, b: f"{a}{MARKER}{b}", _noise, _noise) | st.builds(
    lambda a, b: quote(a, safe="") + MARKER + quote(b, safe=""), _noise, _noise
)
_users = st.sampled_from(["", "admin", "a.b", "a%40b", "school\\admin"])
_userinfo = st.builds(lambda u, p: f"{u}:{p}@", _users, _passwords) | st.builds(
    lambda p: f"{p}@", _passwords
)
_keys = st.sampled_from(
    ["pwd", "password", "passwd", "pw", "user", "usr", "token", "key", "auth", "access_token"]
)
_queries = st.builds(
    lambda mark, key, between, end, p: f"{mark}usr=admin{between}{key}={p}{end}",
    st.sampled_from(["/?", "/videostream.cgi?", "/x;", "/", "?", "/#", "/user=admin_"]),
    _keys,
    st.sampled_from(["&", ";", "&amp;", "_", "%26"]),
    st.sampled_from(["", "&channel=1", "/live", "#x", "@2x"]),
    _passwords,
)  # fmt: skip
_paths = st.builds(lambda p: f"/live/{p}/1", _passwords)
_at = st.builds(lambda s, u, h, rest: f"{s}://{u}{h}{rest}",
                _schemes, _userinfo, _hosts, st.sampled_from(["", "/", "/live", "/x?y=1"]))  # fmt: skip
_behind = st.builds(lambda s, h, q: f"{s}://{h}{q}", _schemes, _hosts, _queries | _paths)
_both = st.builds(
    lambda s, u, h, q: f"{s}://{u}{h}{q}", _schemes, _userinfo, _hosts, _queries | _paths
)
_pipelines = st.builds(
    lambda p, q: f'rtspsrc location=rtsp://cam/x user-id=admin user-pw={p} ! "{q}" ! appsink',
    _passwords, _passwords)  # fmt: skip
_starts = st.sampled_from(["rtsp:/admin:", "admin:", "rtsp:admin:"])
_mistyped = st.builds(lambda start, p: f"{start}{p}@10.0.0.7/live", _starts, _passwords)

addresses = _at | _behind | _both | _pipelines | _mistyped
