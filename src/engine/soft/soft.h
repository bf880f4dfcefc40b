/* Engine `soft`: parat's own CPU in software. docs/soft-engine.md says how it works. */
#ifndef PARAT_ENGINE_SOFT_H
#define PARAT_ENGINE_SOFT_H

#include "vm/engine.h"

extern const struct engine_ops engine_soft;

#endif
