/* moves, exchanges, conditional moves and sets */
#include "x86/decode_int.h"

const struct x86_bind x86_bind_move[] = {{ZYDIS_MNEMONIC_INVALID, NULL}};
