"""tinyslm show: what a GGUF file holds."""

HELP = "x"
DESCRIPTION = ""
EXAMPLES = ""


def add_arguments(parser):
    pass


def run(args):
    return 0
