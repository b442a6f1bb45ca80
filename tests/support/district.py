"""Schools' mosquittos bridged to a district's, as `edge-watch broker --district` sets them up."""

from __future__ import annotations

import itertools
import shutil
import ssl
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import paho.mqtt.client as mqtt

from edge.watch.bridge import District, read_district
from support.brokers import Mosquitto, school_broker
from support.patience import wait_for


class Ear:
    """A client by its certificate: what it hears, and what the broker says to what it publishes."""

    def __init__(
        self, folder: Path, broker: Mosquitto, name: str, *filters: str, kept: str = ""
    ) -> None:
        """folder: of the broker's certificates; filters: to hear; kept: id of a session that stays."""
        self.heard: list[tuple[str, bytes, bool]] = []  # topic, payload, retained
        self._answers: dict[int, bool] = {}
        version = mqtt.MQTTv311 if kept else mqtt.MQTTv5
        self._client = mqtt.Client(
            mqtt.CallbackAPIVersion.VERSION2, kept, False if kept else None, protocol=version
        )
        context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
        file = name.replace("/", "-")
        context.load_cert_chain(folder / f"{file}.pem", folder / f"{file}.key")
        self._client.tls_set_context(context)
        self._client.on_message = self._on_message
        self._client.on_publish = lambda c, u, mid, reason, p: self._answers.update(
            {mid: not reason.is_failure}
        )
        granted: list[Any] = []
        self._client.on_subscribe = lambda *_: granted.append(_)
        self._client.connect("127.0.0.1", broker.port)
        self._client.loop_start()
        for pattern in filters:
            self._client.subscribe(pattern, qos=1)
        wait_for(lambda: len(granted) == len(filters), filters)

    def _on_message(self, client: Any, userdata: Any, message: Any) -> None:
        self.heard.append((message.topic, bytes(message.payload), bool(message.retain)))

    def says(self, topic: str, payload: bytes = b"{}", retain: bool = False) -> bool:
        """Publish at QoS 1; whether the broker took it."""
        mid = self._client.publish(topic, payload, qos=1, retain=retain).mid
        wait_for(lambda: mid in self._answers, topic)
        return self._answers[mid]

    def topics(self) -> list[str]:
        return [topic for topic, _, _ in self.heard]

    def hears(self, topic: str, payload: bytes) -> bool:
        return (topic, payload) in [(at, said) for at, said, _ in self.heard]

    def payloads(self) -> list[bytes]:
        return [payload for _, payload, _ in self.heard]

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


class Schools:
    """A district's broker and schools' ones, each with an authority of its own, by their sites."""

    def __init__(
        self,
        folder: Path,
        sites: Sequence[str],
        names: Sequence[str] = ("tester",),
        claims: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """names: who has a certificate of each broker and may do anything there, besides `server`;
        claims: by site, those that its bridge says are its own."""
        self.folder, self.everyone = folder, ["server", *names]
        self._sees = "".join(
            f"\nuser {name}\ntopic readwrite edge/v1/#\ntopic read $SYS/#\n" for name in names
        )
        plans = {site: read_district("mqtts://127.0.0.1", [site]) for site in sites}
        access = "".join(plan.files("")["district.acl"] for plan in plans.values())
        at = folder / "district"
        at.mkdir()
        bridges = [plan.name for plan in plans.values()]
        self.district = school_broker(at, [*self.everyone, *bridges], access + self._sees)
        self.schools = {
            site: self._school(site, plan, (claims or {}).get(site, [site]))
            for site, plan in plans.items()
        }

    def _school(self, site: str, plan: District, claims: Sequence[str]) -> Mosquitto:
        """Start a school's broker with its bridge."""
        at, district = self.folder / site, self.folder / "district"
        at.mkdir()
        shutil.copy(district / "ca.pem", at / "district-ca.pem")
        address = f"mqtts://127.0.0.1:{self.district.port}"
        more = read_district(address, claims).files(str(at))["edge.district.conf"]
        more = more.replace(f"bridge-{claims[0]}", plan.name)
        for end in ("pem", "key"):
            shutil.copy(district / f"{plan.name}.{end}", at)
        return school_broker(at, self.everyone, self._sees, more)

    def ear(self, where: str, name: str, *filters: str, kept: str = "") -> Ear:
        """A client at `district` or at a school."""
        broker = self.district if where == "district" else self.schools[where]
        return Ear(self.folder / where, broker, name, *filters, kept=kept)

    def command(self, where: str, name: str, *words: object) -> list[str]:
        """edge-watch's command line with a certificate, at `district` or at a school."""
        at = self.folder / where
        broker = self.district if where == "district" else self.schools[where]
        tls = [
            "--ca",
            at / "ca.pem",
            "--certificate",
            at / f"{name}.pem",
            "--key",
            at / f"{name}.key",
        ]
        whole = [sys.executable, "-m", "edge.watch.run", *words, "--broker", broker.url, *tls]
        return [str(word) for word in whole]

    def bridged(self, site: str) -> None:
        """Wait until a school's bridge stands: what is said there is heard at the district, and nothing
        of it is on its way any more."""
        topic = f"edge/v1/{site}/bridge/up/counts"
        ear = self.ear("district", self.everyone[-1], topic)
        speaker, said = self.ear(site, self.everyone[-1]), itertools.count()

        def through() -> bool:
            speaker.says(topic, b"%d" % next(said))
            return bool(ear.heard)

        wait_for(through, lambda: self.schools[site].log.read_text(), every=0.2)
        last = b"%d" % (next(said) - 1)
        wait_for(lambda: last in ear.payloads(), lambda: self.schools[site].log.read_text())
        for client in (ear, speaker):
            client.close()

    def __enter__(self) -> Schools:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for broker in (*self.schools.values(), self.district):
            broker.stop()
