"""Machine code for real GPUs, read back by nvdisasm and cuobjdump."""

import re
import subprocess

import pytest

TARGETS = [(8, 0), (9, 0)]


def usage(cubin, tmp_path):
    """Return registers, stack and local memory of the kernel, and its machine code."""
    pathfinder = pytest.importorskip("cuda.pathfinder")
    tools = [pathfinder.find_nvidia_binary_utility(name) for name in ("cuobjdump", "nvdisasm")]
    if not all(tools):
        pytest.skip("needs nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm")
    file = tmp_path / "kernel.cubin"
    file.write_bytes(cubin)
    told, code = (
        subprocess.run([tool, option, str(file)], check=True, capture_output=True, text=True).stdout
        for tool, option in zip(tools, ("-res-usage", "-c"), strict=True)
    )
    found = re.search(r"REG:(\d+) STACK:(\d+).*?LOCAL:(\d+)", told)
    assert not re.search(r"\b(ATOM|ATOMG|ATOMS|RED)\b", code), "sums would come in any order"
    return [int(number) for number in found.groups()], code


def loops(code):
    """Yield the instructions of each loop: what lies between a label and a branch back to it."""
    labels, found = {}, []
    for line in code.splitlines():
        if label := re.match(r"\s*(\.L_x_\w+):", line):
            labels[label[1]] = len(found)
        elif instruction := re.match(r"\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+ +)?(.*?) ?;", line):
            found.append(instruction[1])
            if (back := re.search(r"BRA.*`\((\.L_x_\w+)\)", instruction[1])) and back[1] in labels:
                yield found[labels[back[1]] :]
