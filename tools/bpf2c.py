#!/usr/bin/env python3
"""Writes a C file with the programs of a BPF object: bpf2c.py OUTPUT OBJECT -> const struct bpf_code bpf_<program>.

A program is a section "tp/NAME"; the maps it names are symbols of section "maps" and become entries of `refs`. So the agent needs
no reader of ELF files, and no library that has one.
"""
import struct
import sys

R_BPF_64_64 = 1


def sections(elf):
    if elf[:5] != b"\x7fELF\x02":
        sys.exit("bpf2c: not a 64-bit ELF file")
    end = "<" if elf[5] == 1 else ">"
    at, = struct.unpack_from(end + "Q", elf, 40)
    size, count, names = struct.unpack_from(end + "HHH", elf, 58)
    heads = [struct.unpack_from(end + "IIQQQQIIQQ", elf, at + i * size) for i in range(count)]

    def text(h, off):
        start = h[4] + off
        return elf[start:elf.index(b"\0", start)].decode()

    return end, [(text(heads[names], h[0]), h, elf[h[4]:h[4] + h[5]] if h[1] != 8 else b"") for h in heads], text, heads


def main():
    output, source = sys.argv[1:]
    with open(source, "rb") as f:
        elf = f.read()
    end, found, text, heads = sections(elf)
    maps = [name for name, _, _ in found].index("maps")
    sym = next((h, data) for _, h, data in found if h[1] == 2)
    out = ['#include "track/track_int.h"', ""]
    for index, (name, _, code) in enumerate(found):
        if not name.startswith("tp/") or not code:
            continue
        prog = name[3:]
        refs = []
        for _, h, data in found:
            if h[1] != 9 or h[7] != index:
                continue
            for at, info in struct.iter_unpack(end + "QQ", data):
                entry = struct.unpack_from(end + "IBBHQQ", sym[1], (info >> 32) * 24)
                if info & 0xffffffff != R_BPF_64_64 or entry[3] != maps:
                    sys.exit(f"bpf2c: {name}: a relocation that isn't of a map")
                refs.append((at // 8, text(heads[sym[0][6]], entry[0])))
        out.append(f"static const struct bpf_insn code_{prog}[] = {{")
        for op, regs, off, imm in struct.iter_unpack(end + "BBhi", code):
            dst, src = (regs & 15, regs >> 4) if end == "<" else (regs >> 4, regs & 15)
            if op == 0x85 and src == 1:
                sys.exit(f"bpf2c: {name}: calls a function that wasn't inlined")
            out.append(f"\t{{{op}, {dst}, {src}, {off}, {imm if imm != -2**31 else '(-2147483647 - 1)'}}},")
        out += ["};", f"static const struct bpf_ref refs_{prog}[] = {{"]
        out += [f'\t{{{at}, "{to}"}},' for at, to in refs]
        out += ["};", f"const struct bpf_code bpf_{prog} = {{code_{prog}, sizeof(code_{prog}) / sizeof(code_{prog}[0]), "
                f"refs_{prog}, sizeof(refs_{prog}) / sizeof(refs_{prog}[0])}};", ""]
    with open(output, "w", encoding="ascii") as f:
        f.write("\n".join(out))


if __name__ == "__main__":
    main()
