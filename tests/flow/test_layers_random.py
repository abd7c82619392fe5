"""A chain of layers under whatever may come, in random order: the seed is printed, REPLANT_LAYERS_SEEDS takes others."""
import json
import os
import random
import signal

import pytest

from streamrig import BUILD
from test_layers import JOB, SMALL, TOOL, USER, Bench, folder, pytestmark, sh  # noqa: F401

SEEDS = [int(s) for s in os.environ.get("REPLANT_LAYERS_SEEDS", "1,5").split(",")]
STEPS = int(os.environ.get("REPLANT_LAYERS_STEPS", "80"))


@pytest.mark.parametrize("seed", [*SEEDS, "random"])
def test_anything(folder, seed):
    """Runs, runs done again, deletions and merges that end anywhere: every image that is kept stays what it was."""
    seed = random.randrange(1 << 32) if seed == "random" else seed
    print("seed", seed)
    Anything(Bench(folder, SMALL[:1 + seed % 3]), random.Random(seed)).go(STEPS)


class Anything:
    def __init__(self, bench, rng):
        self.bench, self.rng, self.number, self.complete = bench, rng, 0, True

    def change(self):
        for disk in range(len(self.bench.disks)):
            if self.rng.random() < 0.7:
                self.bench.change(disk, blocks=3, zeros=2)

    def receive(self):
        """The next run, or once more one that has no image."""
        if self.complete and (f"image-{self.number:016x}" in self.bench.images or self.rng.random() < 0.5 or not self.number):
            self.number += 1
        self.change()
        self.complete = False
        if self.rng.random() < 0.3:
            r = self.bench.receiver(self.number, f"run-{self.rng.randrange(1 << 60):016x}")
            r.proc.send_signal(self.rng.choice((signal.SIGKILL, signal.SIGTERM)))
            r.finish()
            if (self.bench.chain / "boot").exists() and self.rng.random() < 0.5:
                (self.bench.chain / "boot").write_text("another boot")
            return f"half of run {self.number}"
        self.bench.sync(self.number)
        self.complete = True
        if self.rng.random() < 0.75 and f"image-{self.number:016x}" not in self.bench.images:
            self.bench.image(self.number)
        return f"run {self.number}"

    def remove(self):
        if self.rng.random() > len(self.bench.images) / 5:
            return "nothing"
        image = self.rng.choice(sorted(self.bench.images))
        self.bench.remove(image)
        return f"{image} removed"

    def trim(self):
        step = self.rng.randrange(1, 15)
        done = self.bench.trim(check=False, env={"REPLANT_FAULT_TRIM": str(step)})
        return f"trim, killed at {step}: {done.returncode} {done.stderr}"

    def trim_kill(self):
        """While qemu-img writes."""
        done = sh("timeout", "-s", "KILL", f"{self.rng.random() * 0.5:.3f}", TOOL, self.bench.dir, self.bench.folder / "cache",
                  BUILD / "src/transition", USER, "trim", check=False)
        return f"trim, killed: {done.returncode} {done.stderr}"

    def refuse(self):
        disk = self.rng.randrange(len(self.bench.disks))
        pattern = self.rng.choice((f"*/disk{disk}.qcow2", f"*/{self.number}/*", f"*/{max(self.number - 1, 1)}/disk{disk}.qcow2", None))
        self.bench.refuse(pattern, self.rng.random() < 0.5)
        return f"nothing committed to {pattern}"

    def go(self, steps):
        story, doings = [], [(self.receive, 4), (self.remove, 4), (self.trim, 3), (self.trim_kill, 1), (self.refuse, 3)]
        try:
            for _ in range(steps):
                doing = self.rng.choices([d for d, _ in doings], [w for _, w in doings])[0]
                story.append(doing.__name__)
                story[-1] = doing()
                self.bench.compare()
            self.end(story)
        except BaseException:
            print(*story, json.dumps(self.bench.layers()), sep="\n")
            raise

    def end(self, story):
        self.bench.refuse()
        story.append("trim to the end")
        self.bench.trim()
        self.bench.check()
        held = {int(i.split("-")[1], 16) for i in self.bench.images}
        assert held <= {int(n) for n in self.bench.layers()} <= held | {self.number, self.number - 1} | self.below()
        story.append("the job removed")
        self.bench.tool("job-remove", JOB)
        while self.bench.images:
            self.bench.trim()
            self.bench.check()
            self.bench.remove(self.rng.choice(sorted(self.bench.images)))
        self.bench.trim()
        assert not self.bench.chain.exists()

    def below(self):
        """What a run that is not complete stands on."""
        return set() if self.complete else {max((int(n) for n in self.bench.layers() if int(n) < self.number), default=0)}
