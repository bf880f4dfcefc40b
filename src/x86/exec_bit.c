/* bit tests and scans, counts, BMI, crc32 */
#include "x86/decode_int.h"

const struct x86_bind x86_bind_bit[] = {{ZYDIS_MNEMONIC_INVALID, NULL}};
