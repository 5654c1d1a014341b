"""What both halves are told before they start, beside settings; the compose file says the same."""

from __future__ import annotations

# How the OpenMP threads of a pass wait for each other. Spinning without end, service and learner on
# the same cores more than halve each other; asleep at once, a picture alone takes 63 ms on two cores
# instead of 43, for the waking. So they spin for some tens of microseconds, where OpenMP is GNU's, as
# in torch's wheels for Linux; another one's sleep.
WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "10000"}


def learner_environment(threads: int) -> dict[str, str]:
    """Return the variables of a learner with so many threads, beside its settings."""
    return {
        # Its bits depend on the number.
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        # Large buffers that come and go tear the heap between what stays: about 1 MB a sample
        # without these (glibc), flat with them. To map smaller ones too would double its work.
        "MALLOC_MMAP_THRESHOLD_": str(16 << 20),
        "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
    }
