/*
 * Reads the host code that the translator has made, as a second opinion on it: whatever can be
 * reached from the entries of the units that there are, through all branches, is decoded, and
 *
 * - lies in the code memory, and no instruction begins in the middle of another;
 * - enters and leaves only by the common routines and the jump cache;
 * - is no system call, no port, no privileged or far instruction, and does not touch FS and GS;
 * - does not change RSP, and its operands in memory lie in struct x86_cpu or are reached through
 *   the scratch registers that hold what the TLB said.
 *
 * What is wrong crashes.
 */
#ifndef PARAT_TESTS_FUZZ_VERIFY_H
#define PARAT_TESTS_FUZZ_VERIFY_H

struct engine_vcpu;

void verify_code(struct engine_vcpu *vcpu);

#endif
