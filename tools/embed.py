#!/usr/bin/env python3
"""Writes a C file holding files as strings: embed.py OUTPUT ARRAY FILE... -> const struct embed_file ARRAY[]."""
import os
import sys


def literal(text: bytes) -> str:
    """The bytes as C string literals, one per line of the file, under the compilers' limit on line length."""
    out = []
    for line in text.splitlines(keepends=True) or [b""]:
        for at in range(0, len(line), 1000):
            piece = line[at:at + 1000]
            out.append('\t"' + "".join(
                chr(c) if 32 <= c < 127 and c not in b'"\\?' else f"\\{c:03o}" for c in piece) + '"')
    return "\n".join(out)


def main() -> None:
    output, array, files = sys.argv[1], sys.argv[2], sys.argv[3:]
    with open(output, "w", encoding="ascii") as f:
        f.write('#include "base/embed.h"\n\n')
        f.write(f"const struct embed_file {array}[] = {{\n")
        for name in files:
            with open(name, "rb") as source:
                data = source.read()
            f.write(f'{{"{os.path.basename(name)}", {len(data)},\n{literal(data)}}},\n')
        f.write("{0}};\n")


if __name__ == "__main__":
    main()
