/* add … test, inc, dec, neg, not, adcx, adox */
#include "x86/decode_int.h"

const struct x86_bind x86_bind_alu[] = {{ZYDIS_MNEMONIC_INVALID, NULL}};
