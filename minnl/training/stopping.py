"""Signals that ask a run to stop: Ctrl-C, SIGTERM from the system, SIGHUP from a terminal that closes."""

from __future__ import annotations

import contextlib
import signal
import threading

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


@contextlib.contextmanager
def on_signals(ask):
    """Context in which such a signal calls ``ask(number)``, and a second Ctrl-C raises KeyboardInterrupt.

    The other signals may come more than once: both the system and the shell report that a terminal has closed. A signal
    that is ignored stays ignored (nohup). Outside the main thread the context does nothing.
    """
    asked = False

    def handle(number, frame):
        nonlocal asked
        if asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked = True
        ask(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {s: signal.getsignal(s) for s in SIGNALS}
    before = {s: handler for s, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for s in before:
        signal.signal(s, handle)
    try:
        yield
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
