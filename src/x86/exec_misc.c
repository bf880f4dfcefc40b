/* no-ops, fences, cache hints, flag operations */
#include "x86/decode_int.h"

const struct x86_bind x86_bind_misc[] = {{ZYDIS_MNEMONIC_INVALID, NULL}};
