"""The laboratory: real servers to migrate, built and booted by the tests.

    from tests.lab import build, servers
    with build.boot(servers.find("debian12-lvm-bios")) as machine:
        machine.wait_ssh()
        print(machine.ssh("cat /etc/hostname"))
"""
