"""What the gateway's parts count by themselves, put on its /metrics page."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from marsbench.gateway.control.views import ReplicaView
from marsbench.gateway.monitoring.meters import LabelledReading

if TYPE_CHECKING:
    from marsbench.gateway.app import Gateway


def put_on_page(gateway: Gateway) -> None:
    """Put everything on the metrics page that is looked up when somebody asks."""
    _states(gateway)
    _totals(gateway)
    _backends(gateway)


def _states(gateway: Gateway) -> None:
    gauge = gateway.meters.gauge
    control, fleet, slots = gateway.control, gateway.control.fleet, gateway.slots
    gauge("pending_turns", "Turns that wait for admission.", lambda: control.num_pending)
    gauge("turns_in_flight", "Requests being served.", lambda: len(gateway.desk.turns))
    gauge("active_sessions", "Admitted, unfinished sessions.", lambda: len(fleet.active))
    gauge("sessions", "Unfinished sessions.", lambda: len(control.table.sessions))
    gauge("tools_running", "Tool calls that run, or are thought to.", lambda: slots.running)
    gauge("tools_queued", "Tool calls that wait for a slot.", lambda: slots.queued)
    gauge("healthy_backends", "Backends that get turns.", lambda: len(gateway.pool.healthy))
    gauge("kv_free_blocks", "Free KV blocks of all backends.", lambda: fleet.free_blocks)
    gauge("kv_blocks", "KV blocks of all backends.", lambda: fleet.num_blocks)
    gauge(
        "prefix_cache_hit_ratio",
        "Prompt tokens of the last turns that were found cached.",
        lambda: fleet.prefix_cache_hit_rate,
    )
    gauge("body_bytes", "Request bodies in memory.", lambda: gateway.bodies.used)
    gauge("draining", "1 while the gateway shuts down.", lambda: gateway.guard.draining)


def _totals(gateway: Gateway) -> None:
    counter = gateway.meters.counter
    control, slots = gateway.control, gateway.slots
    counter("policy_overrides", "Turns let in against the policy.", lambda: control.overrides)
    counter("lease_expiries", "Tool leases that ran out.", lambda: slots.expired)
    counter("overdue_calls", "Tool calls not back in time.", lambda: control.guesses.overdue)
    counter("lent_places", "Places of silent sessions given to others.", lambda: control.lent)
    counter("lost_events", "Events that made room.", lambda: gateway.bus.dropped)
    recorder, run = gateway.recorder, gateway.run
    if recorder is not None:
        counter("recorded_sessions", "Sessions in the trace.", lambda: recorder.num_sessions)
        counter("record_failures", "Sessions not written.", lambda: recorder.failures)
    if run is not None:
        counter("run_sessions", "Sessions in the run folder.", lambda: run.num_sessions)
        counter("run_dropped_sessions", "Sessions not in it.", lambda: run.dropped)


def _backends(gateway: Gateway) -> None:
    pool, meters = gateway.pool, gateway.meters

    def each(read: Callable[[ReplicaView], float]) -> LabelledReading:
        return lambda: ((str(view.index), read(view)) for view in pool.views)

    def told(field: str) -> LabelledReading:
        return lambda: (
            (str(view.index), float(getattr(view.metrics, field)))
            for view in pool.views
            if view.metrics is not None
        )

    meters.backend_gauge(
        "up",
        "1 if the backend gets turns.",
        lambda: ((str(backend.index), float(backend.healthy)) for backend in pool.backends),
    )
    meters.backend_gauge("turns", "Turns sent and not finished.", each(lambda v: v.in_flight))
    meters.backend_gauge("kv_blocks", "KV blocks.", each(lambda v: v.num_blocks))
    meters.backend_gauge("kv_free_blocks", "Free KV blocks.", each(lambda v: v.free_blocks))
    meters.backend_gauge("requests_running", "As the backend says.", told("running"))
    meters.backend_gauge("requests_waiting", "As the backend says.", told("waiting"))
    meters.backend_gauge(
        "pinned_blocks",
        "KV blocks that the plug-in keeps for sessions in their tools, as it says.",
        lambda: (
            (str(view.index), float(view.told_pinned_blocks))
            for view in pool.views
            if view.told_pinned_blocks >= 0
        ),
    )
    meters.backend_counter("preemptions", "As the backend says.", told("preemptions"))
