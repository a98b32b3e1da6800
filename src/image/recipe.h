/* SPDX-License-Identifier: Apache-2.0 */
/* What goes into an image: which packages, which of their files, which kernel modules in which
 * order, which kernel flags. Facts only; image_build.c carries them out. */
#ifndef KLP_IMAGE_RECIPE_H
#define KLP_IMAGE_RECIPE_H

#include "format/machine.h"

enum klp_part_kind {
    KLP_PART_FILES,  /* the files of `keep` go into the guest */
    KLP_PART_LIBRARY /* shared libraries go in when a program names them */
};

struct klp_recipe_part {
    const char *package;
    enum klp_part_kind kind;
    const char *const *keep; /* NULL-terminated; "dir/" = all below it, else one path */
};

struct klp_recipe {
    const char *name;
    const char *version; /* MAJOR.MINOR.PATCH of what it makes; grows with the recipe */
    const struct klp_recipe_part *parts; /* package NULL ends; beside the kernel and busybox */
};

/* NULL = no such recipe. */
const struct klp_recipe *klp_recipe_find(const char *name);
/* Names of kernel modules without ".ko", in the order they load; NULL-terminated. */
const char *const *klp_recipe_modules(enum klp_arch arch);
const char *klp_recipe_cmdline(enum klp_arch arch);
/* Is the file of this part wanted? `path` has the layout of layout.h. */
bool klp_recipe_wants(const struct klp_recipe_part *part, const char *path);

#endif
