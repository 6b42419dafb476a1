"""MARS: the scheduler under study, its presets and its ablations."""

SYSTEMS: dict[str, str] = {
    "mars": "mars_impl.policy.MARS",
}
