/* What every cmocka test includes first, in the order that cmocka wants. */
#ifndef PARAT_TESTS_TEST_H
#define PARAT_TESTS_TEST_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#endif
