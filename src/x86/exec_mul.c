/* multiplication, division, decimal arithmetic */
#include "x86/decode_int.h"

const struct x86_bind x86_bind_mul[] = {{ZYDIS_MNEMONIC_INVALID, NULL}};
