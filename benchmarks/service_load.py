"""The service under load on loopback: throughput, latency, batching, a full queue, and memory.

    python -m benchmarks.service_load MODEL.onnx IMAGE --out benchmarks/results/service_load.json [--device cuda]

The service runs in a separate process. The clients are threads of this process. They send IMAGE as the raw tensor of one
inference, and as a file to `POST /score`. Batches of `--batch-size` images and single images take turns, and the ratios are
medians over neighbouring rounds. Processor time per image (`core_ms`) depends less on other load than throughput does.
`scorer_alone` is a loop over the same image without a service. Memory is the resident set of the service after each tenth of
the requests.
"""

from __future__ import annotations

import argparse
import http.client
import json
import re
import statistics
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from anomaly.imaging.image_file import read_image
from anomaly.inference.scorer import OnnxScorer
from anomaly.service.inference_protocol import HEADER_LENGTH
from anomaly.system.run_card import RunCard
from benchmarks.command_line import command

MAX_PIXELS = 100_000_000
CLIENTS = (1, 8, 64)


@contextmanager
def service(arguments: argparse.Namespace, *options: str) -> Iterator[int]:
    """Run the service on a free port; yield the port."""
    serve = command("serve", f"m={arguments.model}", "--port", "0", "--device", arguments.device, *options)
    with subprocess.Popen(serve, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        found = None
        while found is None:
            found = re.search(r"serving on http://127\.0\.0\.1:(\d+)", process.stderr.readline())
        log = threading.Thread(
            target=lambda: all(process.stderr or ())
        )  # reads the pipe, so that the service does not block
        log.start()
        try:
            yield int(found[1])
        finally:
            process.terminate()
            process.wait()
            log.join()


class Load:
    """Clients that repeat one request, each after its previous response."""

    def __init__(self, port: int, *, path: str, body: bytes, headers: dict[str, str]) -> None:
        self._port, self._path, self._body, self._headers = port, path, body, headers
        self._lock = threading.Lock()

    def run(self, *, num_clients: int, seconds: float, num_requests: int) -> dict[str, Any]:
        """Send requests for `seconds`, or `num_requests` of them if that is above 0."""
        seconds_each: list[float] = []
        statuses: Counter[int] = Counter()
        remaining = [num_requests]
        end = time.perf_counter() + seconds

        def send() -> None:
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=120)
            while True:
                with self._lock:
                    remaining[0] -= 1
                    if remaining[0] < 0 if num_requests else time.perf_counter() > end:
                        break
                begin = time.perf_counter()
                connection.request("POST", self._path, body=self._body, headers=self._headers)
                response = connection.getresponse()
                response.read()
                with self._lock:
                    statuses[response.status] += 1
                    if response.status == 200:
                        seconds_each.append(time.perf_counter() - begin)
                if response.status == 503:
                    time.sleep(float(response.headers["Retry-After"]))
            connection.close()

        begin = time.perf_counter()
        threads = [threading.Thread(target=send) for _ in range(num_clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wall = time.perf_counter() - begin
        return {
            "requests_per_second": round(len(seconds_each) / wall, 2),
            "p50_ms": round(1e3 * float(np.percentile(seconds_each, 50)), 1),
            "p99_ms": round(1e3 * float(np.percentile(seconds_each, 99)), 1),
            "slowest_ms": round(1e3 * max(seconds_each), 1),
            "statuses": {str(status): num for status, num in sorted(statuses.items())},
        }


def gauge(port: int, name: str) -> float:
    """Read one value of the service's metrics."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    found = re.search(rf"^{name} (\S+)$", text, flags=re.MULTILINE)
    assert found, f"{name} is missing in the metrics"
    return float(found[1])


def scorer_loop(scorer: OnnxScorer, image: Any, *, rounds: int) -> dict[str, float]:
    """Measure a loop over the scorer: images per second and processor time per image, medians of two-second rounds."""
    per_second, core_ms = [], []
    for _ in range(rounds):
        begin, before, num = time.perf_counter(), time.process_time(), 0
        while time.perf_counter() - begin < 2.0:
            scorer.score(image)
            num += 1
        per_second.append(num / (time.perf_counter() - begin))
        core_ms.append(1e3 * (time.process_time() - before) / num)
    return {
        "images_per_second": round(statistics.median(per_second), 2),
        "core_ms": round(statistics.median(core_ms), 2),
    }


def speed(arguments: argparse.Namespace, tensor: dict[str, Any], file: dict[str, Any]) -> dict[str, Any]:
    """Measure throughput, latency and processor time by number of clients, with batches and without, in turn."""
    found: dict[str, list[dict[str, Any]]] = {}
    options = {"gathered": str(arguments.batch_size), "one_by_one": "1"}
    with ExitStack() as opened:
        ports = {
            name: opened.enter_context(service(arguments, "--batch-size", size, "--max-queue", "128"))
            for name, size in options.items()
        }
        for port in ports.values():
            Load(port, **tensor).run(num_clients=2 * arguments.batch_size, seconds=3.0, num_requests=0)  # warms up
        for number in range(arguments.rounds):
            for num_clients in CLIENTS:
                for name in sorted(ports, reverse=bool(number % 2)):
                    line = measure_load(ports[name], tensor, num_clients=num_clients, seconds=arguments.seconds)
                    found.setdefault(f"infer_{name}_{num_clients}", []).append(line)
                line = measure_load(ports["gathered"], file, num_clients=num_clients, seconds=arguments.seconds)
                found.setdefault(f"score_{num_clients}", []).append(line)
    result: dict[str, Any] = {key: medians(lines) for key, lines in found.items()}
    for name, figure in (("requests_per_second", "throughput"), ("core_ms", "processor_time")):
        result[f"gathered_over_one_by_one_{figure}"] = {
            str(n): round(
                statistics.median(
                    a[name] / b[name]
                    for a, b in zip(found[f"infer_gathered_{n}"], found[f"infer_one_by_one_{n}"], strict=True)
                ),
                3,
            )
            for n in CLIENTS
        }
    return result


def measure_load(port: int, load: dict[str, Any], *, num_clients: int, seconds: float) -> dict[str, Any]:
    """Measure one load, with its processor time and the images per inference."""
    names = ("process_cpu_seconds_total", "anomaly_batch_images_sum", "anomaly_batch_images_count")
    before = [gauge(port, name) for name in names]
    line = Load(port, **load).run(num_clients=num_clients, seconds=seconds, num_requests=0)
    cpu, images, inferences = (gauge(port, name) - value for name, value in zip(names, before, strict=True))
    return line | {"core_ms": round(1e3 * cpu / images, 2), "images_per_inference": round(images / inferences, 2)}


def medians(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of several measurements, and the sums of their responses by status."""
    statuses: Counter[str] = Counter()
    for line in lines:
        statuses.update(line["statuses"])
    numbers = {
        name: round(statistics.median(line[name] for line in lines), 2) for name in lines[0] if name != "statuses"
    }
    return numbers | {"statuses": dict(statuses)}


def queue(arguments: argparse.Namespace, tensor: dict[str, Any]) -> dict[str, Any]:
    """Measure sixty-four clients at a queue of eight."""
    with service(arguments, "--max-queue", "8") as port:
        Load(port, **tensor).run(num_clients=4, seconds=2.0, num_requests=0)
        return Load(port, **tensor).run(num_clients=64, seconds=max(8.0, arguments.seconds), num_requests=0)


def memory(arguments: argparse.Namespace, tensor: dict[str, Any], file: dict[str, Any]) -> dict[str, Any]:
    """Measure resident memory after each tenth of the requests, half of them tensors and half files."""
    mib = []
    statuses: Counter[str] = Counter()
    with service(arguments) as port:
        for _ in range(10):
            for body in (tensor, file):
                line = Load(port, **body).run(num_clients=8, seconds=0.0, num_requests=arguments.memory // 20)
                statuses.update(line["statuses"])
            mib.append(round(gauge(port, "process_resident_memory_bytes") / 2**20, 1))
    return {
        "requests": sum(statuses.values()),
        "statuses": dict(statuses),
        "mib_after_each_tenth": mib,
        "last_over_second_tenth": round(mib[-1] / mib[1], 4),
    }


def main() -> None:
    """Measure the load, the queue and the memory, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("image", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the load; 0 skips it")
    parser.add_argument("--batch-size", type=int, default=8, help="images per batch")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--memory", type=int, default=20_000, help="requests of the memory measurement; 0 skips it")
    parser.add_argument("--note", default="", help="other load on the machine")
    arguments = parser.parse_args()
    card = RunCard(
        "benchmarks/service_load.py",
        config={**vars(arguments), **{name: getattr(arguments, name).name for name in ("model", "image", "out")}},
    )
    scorer = OnnxScorer(arguments.model, device=arguments.device, num_threads=0)
    image = read_image(arguments.image, white=scorer.metadata.white, max_pixels=MAX_PIXELS)[None]
    header = json.dumps(
        {
            "inputs": [
                {
                    "name": "image",
                    "datatype": "UINT8",
                    "shape": list(image.shape),
                    "parameters": {"binary_data_size": image.size},
                }
            ],
            "outputs": [{"name": "score", "parameters": {"binary_data": True}}],
        }
    ).encode()
    length = {HEADER_LENGTH: str(len(header))}
    tensor = {"path": "/v2/models/m/infer", "body": header + image.tobytes(), "headers": length}
    file = {"path": "/score", "body": arguments.image.read_bytes(), "headers": {"Content-Type": "image/*"}}
    result: dict[str, Any] = {"pixels": list(image.shape[1:3])}
    if arguments.rounds:
        result["scorer_alone"] = scorer_loop(scorer, image, rounds=arguments.rounds)
        result["load"] = speed(arguments, tensor, file)
        result["queue_of_8_before_64_clients"] = queue(arguments, tensor)
    if arguments.memory:
        result["memory"] = memory(arguments, tensor, file)
    card.facts["result"] = result
    card.write(arguments.out)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
