#!/usr/bin/python3
"""What a migration test predicts beside what the migration then takes, for sources of several sizes: bench/predict.py [MIB...]

Each is a small Debian server and a disk of data that nothing can pack, sent over a line of 100 Mbit/s. Needs root, and the programs
of build/ (or REPLANT_BUILD)."""

import argparse
import pathlib
import shutil
import sys

TOP = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TOP))
from tests.lab.center import Center, open_folder  # noqa: E402
from tests.lab.rack import Rack  # noqa: E402

RATE = 100  # Mbit/s


def one(mib, method):
    folder = open_folder()
    try:
        with Center(folder / "center") as center, Rack(center, folder, data_mib=mib) as rack:
            job = center.cli("jobs", "create", rack.id, "--rate", str(RATE))["id"]
            center.cli("jobs", "test", job, *(["--then-migrate"] if method == "migrate" else []))
            row = center.wait_job(job, states=("ready", "finished", "in_error"))
            if method == "only" and row["state"] == "ready":
                assert row["test"]["state"] == "done", row
                center.cli("jobs", "start", job)
                row = center.wait_job(job)
            if row["state"] != "finished":
                raise SystemExit(f"{row['error']}\n{row['test']}\n{center.tail(30)}")
            return row["test"]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("mib", nargs="*", type=int, default=[64, 512, 1536], help="of data, beside the system's disk")
    parser.add_argument("--then-migrate", action="store_true", help="test and migrate, instead of one after the other")
    o = parser.parse_args()
    print(f"{'data':>9} {'tested':>9} {'':>10} {'transfer':>9} {'convert':>8} {'boot':>7} {'total':>8} {'error':>7}")
    for mib in o.mib:
        test = one(mib, "migrate" if o.then_migrate else "only")
        said, took = test["prediction"], test["actual"]
        print(f"{said['bytes'] / 2**20:5.0f} MiB {test['copy']['copied_bytes'] / 2**20:5.0f} MiB {'predicted':>10} {said['transfer_seconds']:7.1f} s "
              f"{said['conversion_seconds']:6.1f} s {said['test_boot_seconds']:5.1f} s {said['total_seconds']:6.1f} s")
        print(f"{'':>9} {'':>9} {'taken':>10} {took['transfer_seconds']:7.1f} s {took['processing_seconds']:16.1f} s {took['total_seconds']:6.1f} s "
              f"{took['error_percent']:+5.0f} %", flush=True)


if __name__ == "__main__":
    main()
