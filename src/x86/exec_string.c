/* string instructions */
#include "x86/decode_int.h"

const struct x86_bind x86_bind_string[] = {{ZYDIS_MNEMONIC_INVALID, NULL}};
