/*
 * Translation of vector instructions. The CPU's thread.
 */
#include "x86/translate_int.h"

bool x86_vector_classify(struct x86_source *s)
{
    (void)s;
    return false;
}

void x86_translate_vector(struct x86_translation *t)
{
    x86_translate_by_handler(t);
}
