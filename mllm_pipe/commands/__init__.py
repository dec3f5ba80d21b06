"""The commands, one module each. Ctrl-C ends one that still loads as it ends any program: `cli.run` listens later."""

import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
