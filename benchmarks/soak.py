"""Many clients for many minutes, a third of whom leave in the middle: does every answer stay right, does every place become free again, does memory stay what it was?

    python -m benchmarks.soak run_dir=runs/dev minutes=10 [flight=32] [out=benchmarks/soak.md]

The exported model behind the guard; openings of the sample company's customers, streamed and whole in turns. What must come is what came when nothing else was asked.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import psutil

from benchmarks.serve import PORT, endpoint, post, server
from conf.load import load_config
from data_prep.company.pack import load_pack
from data_prep.company.talk import draw_talk

TALKS = 60
LEAVES = 1 / 3
EVERY = 2.0           # seconds between two looks at the memory


async def ask(asked: dict, stream: bool, leaves_after: int | None) -> tuple[str, list[str]] | None:
    """(words, calls) of the answer, or None where this client left after so many lines."""
    body = json.dumps({**asked, "stream": stream}).encode()
    reader, writer = await post("/v1/chat/completions", body)
    try:
        if leaves_after is not None:
            for _ in range(leaves_after):
                await asyncio.wait_for(reader.readline(), 60)
            return None
        raw = (await asyncio.wait_for(reader.read(), 120)).decode()
    finally:
        writer.close()
    if not stream:
        message = json.loads(raw.partition("\r\n\r\n")[2])["choices"][0]["message"]
        return message["content"] or "", [call["function"]["name"] + call["function"]["arguments"] for call in message.get("tool_calls") or []]
    words, calls = "", {}
    for line in raw.splitlines():
        if line.startswith("data: {"):
            for choice in json.loads(line[6:])["choices"]:
                words += choice["delta"].get("content") or ""
                for call in choice["delta"].get("tool_calls") or []:
                    calls[call["index"]] = calls.get(call["index"], "") + (call["function"].get("name") or "") + (call["function"].get("arguments") or "")
    return words, list(calls.values())


def resident(root: psutil.Process) -> float:
    """MB of the server and its engine."""
    return sum(process.memory_info().rss for process in (root, *root.children(recursive=True))) / 2 ** 20


async def soak(seconds: float, flight: int) -> dict:
    pack = load_pack(load_config([]).company)
    asked = [{"messages": draw_talk(pack, number, "unseen", 6, "unseen_weight").messages, "tools": pack.tool_schemas(), "temperature": 0, "max_tokens": 96} for number in range(TALKS)]
    expected = [await ask(one, False, None) for one in asked]
    root = next(process for process in psutil.process_iter() if f"port={PORT}" in process.cmdline() and process.parent() and "-m" in process.cmdline())
    found = {"whole": 0, "left": 0, "wrong": 0, "replaced": 0}
    memory, began, rng = [], time.monotonic(), random.Random(0)

    async def client() -> None:
        while time.monotonic() - began < seconds:
            number, stream = rng.randrange(TALKS), rng.random() < 0.5
            answer = await ask(asked[number], stream, rng.randint(0, 8 if stream else 0) if rng.random() < LEAVES else None)
            found["left" if answer is None else "whole"] += 1
            if answer is not None:
                found["wrong"] += answer != expected[number]
                found["replaced"] += "\ufffd" in answer[0] + "".join(answer[1])

    async def look() -> None:
        while time.monotonic() - began < seconds:
            memory.append((time.monotonic() - began, resident(root)))
            await asyncio.sleep(EVERY)

    await asyncio.gather(look(), *(client() for _ in range(flight)))
    await asyncio.sleep(2)
    state = json.load(urllib.request.urlopen(f"http://127.0.0.1:{PORT}/ready"))
    late = [(at, mb) for at, mb in memory if at > seconds / 4]            # caches are full by then
    slope = float(np.polyfit([at / 60 for at, _ in late], [mb for _, mb in late], 1)[0])
    return found | {"running": state["running"], "waiting": state["waiting"], "slope": slope, "first_mb": statistics.median(mb for _, mb in late[:10]), "last_mb": statistics.median(mb for _, mb in late[-10:])}


def main(arguments: list[str]) -> None:
    given = dict(one.split("=", 1) for one in arguments)
    minutes, flight = float(given.get("minutes", 10)), int(given.get("flight", 32))
    with server(endpoint(Path(given.get("run_dir", "runs/dev")) / "export/model"), "ready"):
        made = asyncio.run(soak(60 * minutes, flight))
    text = "\n".join(["# Ten minutes with clients who leave", "", f"`python -m benchmarks.soak {' '.join(arguments)}`", "", "| what | measured |", "|---|---|", f"| answers read to the end | {made['whole']} |", f"| clients who left in the middle | {made['left']} |",
                      f"| answers other than when asked alone | {made['wrong']} |", f"| answers with U+FFFD | {made['replaced']} |", f"| requests at work, waiting, two seconds after the last | {made['running']}, {made['waiting']} |",
                      f"| memory of server and engine, a quarter in and at the end, MB | {made['first_mb']:.0f}, {made['last_mb']:.0f} |", f"| its slope, MB a minute | {made['slope']:+.2f} |"]) + "\n"
    print(text)
    if "out" in given:
        Path(given["out"]).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
