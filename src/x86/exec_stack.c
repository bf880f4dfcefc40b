/* push, pop, enter, leave, flags */
#include "x86/decode_int.h"

const struct x86_bind x86_bind_stack[] = {{ZYDIS_MNEMONIC_INVALID, NULL}};
