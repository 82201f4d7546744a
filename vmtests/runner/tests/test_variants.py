"""What scenarios.json may say of a scenario, besides its machines."""

from __future__ import annotations

import tempfile
import tomllib
import unittest
from pathlib import Path

from runner import __main__ as runner
from runner import layout, payload, qemu
from runner.image import Image


class Variants(unittest.TestCase):
    def test_scripts_and_machines_are_there(self) -> None:
        for name, scenario in runner.scenarios().items():
            script = layout.VMTESTS / f"{scenario.get('script', name)}.py"
            self.assertTrue(script.exists(), f"{name}: {script}")
            self.assertLessEqual(set(scenario["machines"]), {"alpha", "beta", "gamma"}, name)
            self.assertIn(scenario.get("device", "auto"), ("auto", "veth", "netkit"), name)

    def test_a_device_is_in_the_configuration(self) -> None:
        with tempfile.NamedTemporaryFile() as binary:
            for device in ("", "netkit"):
                config, _ = payload.files("alpha", Path(binary.name), {}, device)["etc/oncache/config.toml"]
                table = tomllib.loads(config.decode()).get("container", {})
                self.assertEqual(table, {"device": device} if device else {})

    def test_the_scenarios_own_tools_are_there(self) -> None:
        with tempfile.NamedTemporaryFile() as binary:
            content, mode = payload.files("alpha", Path(binary.name), {})["usr/local/bin/udp-rounds"]
        self.assertTrue(content.startswith(b"#!/usr/bin/env python3\n"))
        self.assertEqual(mode, 0o755)

    def test_only_a_counted_machine_counts(self) -> None:
        disks = qemu.Disks(Path("root"), Path("state"), Path("payload"))
        for counted in (False, True):
            boot = qemu.Boot(Image(Path("image")), "6.12", disks, None, "52:54:00:12:01:01", counted=counted)
            arguments = qemu.arguments(boot, Path("directory"))
            self.assertEqual("-icount" in arguments, counted)
            self.assertEqual(any("thread=single" in argument for argument in arguments), counted)
            self.assertIn(f"base=utc,clock={'vm' if counted else 'host'}", arguments)

    def test_processors_are_as_many_as_given(self) -> None:
        disks = qemu.Disks(Path("root"), Path("state"), Path("payload"))
        boot = qemu.Boot(Image(Path("image")), "6.12", disks, None, "52:54:00:12:01:01", processors=2)
        arguments = qemu.arguments(boot, Path("directory"))
        self.assertEqual(arguments[arguments.index("-smp") + 1], "2")

    def test_what_the_snapshot_is_not_like_is_not_restored(self) -> None:
        self.assertTrue(runner.boots({"processors": 2}))
        self.assertTrue(runner.boots({"counted": True}))
        self.assertTrue(runner.boots({"cold": True}))
        self.assertFalse(runner.boots({"machines": []}))
