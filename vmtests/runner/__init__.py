"""Runs the scenarios of vmtests/ on Debian machines in QEMU, by the NixOS test driver's API."""
