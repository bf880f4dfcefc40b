/* xadd, cmpxchg*, LOCK forms */
#include "x86/decode_int.h"

const struct x86_bind x86_bind_atomic[] = {{ZYDIS_MNEMONIC_INVALID, NULL}};
