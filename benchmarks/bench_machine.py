"""The limits of the cores: matrix products, copies, and arithmetic on two threads.

python benchmarks/bench_machine.py [--save]

The ratios of the other benchmarks should be compared with these limits.
"""

import threading
from collections.abc import Callable

import numba
import numpy as np
import torch
import torch.nn.functional as F
from side_by_side import about, alternate, finish, parser

ROWS, INTO, OUT_OF = 4096, 384, 1536  # of a layer of ConvNeXt-Tiny


def best(run: Callable[[], object], rounds: int) -> float:
    run()
    return min(alternate({"run": run}, rounds)["run"])


def on_two(run: Callable[[int], object]) -> None:
    threads = [threading.Thread(target=run, args=(half,)) for half in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@numba.njit(nogil=True)
def arithmetic(n: int) -> float:
    total = 0.0
    for i in range(n):
        total += np.sqrt(i + 0.5)
    return total


@torch.inference_mode()
def main() -> None:
    options = parser(__doc__).parse_args()
    torch.set_num_threads(1)
    products = ROWS * INTO * OUT_OF / 1e9
    results = about("machine", "torch numpy numba")
    rates = {}
    for dtype in (torch.float32, torch.bfloat16):
        x, weight = torch.randn(ROWS, INTO).to(dtype), torch.randn(OUT_OF, INTO).to(dtype)
        seconds = best(lambda x=x, w=weight: F.linear(x, w), options.rounds)
        rates[str(dtype).removeprefix("torch.")] = products / seconds
    x = torch.randint(-100, 100, (ROWS, INTO), dtype=torch.int8)
    weight = torch.randint(-100, 100, (INTO, OUT_OF), dtype=torch.int8)
    rates["int8"] = products / best(lambda: torch._int_mm(x, weight), options.rounds)
    results["billion_products_per_s_core"] = rates

    source = np.ones(1 << 26, np.uint8)
    target = np.ones_like(source)
    halves = [slice(0, 1 << 25), slice(1 << 25, 1 << 26)]

    def copy(rows: slice) -> None:
        target[rows] = source[rows]

    one = best(lambda: copy(slice(None)), options.rounds)
    two = best(lambda: on_two(lambda half: copy(halves[half])), options.rounds)
    results["copied_gb_per_s"] = {"one thread": len(source) / one / 1e9}
    results["copied_gb_per_s"]["two threads"] = len(source) / two / 1e9
    one = best(lambda: arithmetic(20_000_000), options.rounds)
    two = best(lambda: on_two(lambda _: arithmetic(10_000_000)), options.rounds)
    results["arithmetic_two_threads_times_one"] = one / two
    print(results)
    finish(results, options.save)


if __name__ == "__main__":
    main()
