"""The pure core: what is so, and what follows from what happens. No I/O, no clock, no framework.

    kernel = Kernel(KernelSettings.of(settings, new_id), now)
    kernel.load(snapshot, now)
    effects = decide(kernel, event, now)

``decide`` changes nothing but the kernel's index; its effects are written and sent by the scheduler. Tasks are
dispatched by ``Tick`` alone, so a batch of events ends with one.
"""

from orchestrator.kernel.decide import decide
from orchestrator.kernel.index import Kernel
from orchestrator.kernel.outcomes import REGISTRY_CONFLICT, would_publish
from orchestrator.kernel.settings import Desired, KernelSettings, Snapshot

__all__ = ["REGISTRY_CONFLICT", "Desired", "Kernel", "KernelSettings", "Snapshot", "decide", "would_publish"]
