/* SPDX-License-Identifier: Apache-2.0 */
/* Running mutants; a line each on stdout. Returns the status of the program. */
#ifndef SIM_MUTANTS_H
#define SIM_MUTANTS_H

#include <stdint.h>

int sim_mutant_run(const char *name, uint64_t seed, uint64_t most); /* 0 = as many as are due */
int sim_mutants_run(uint64_t seed, uint64_t most);

#endif
