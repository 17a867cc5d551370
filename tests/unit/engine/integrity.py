"""Engines that check themselves while a test uses them."""

from llamita.engine.engine import Engine


def checked(engine: Engine) -> Engine:
    """An engine that looks at all its counts after each step."""
    step = engine._core.step

    def run() -> None:
        step()
        engine._core.scheduler.check_integrity()

    engine._core.step = run
    return engine
