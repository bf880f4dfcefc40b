/* near branches, calls, software interrupts */
#include "x86/decode_int.h"

const struct x86_bind x86_bind_branch[] = {{ZYDIS_MNEMONIC_INVALID, NULL}};
