/* The search on what every CPU of the target has. */
#include "blocks.h"
#define SPAN_NAME slm_span_plain
#include "spans.inc"
