/* SPDX-License-Identifier: Apache-2.0 */
/* The closure of shared libraries, by passes over the tree: a library that is taken has needs of
 * its own, which the next pass finds. A few hundred small files, so the passes cost nothing that
 * matters. */
#include "image/library.h"

#include <stdio.h>
#include <string.h>

#include "image/elf.h"
#include "image/layout.h"

struct taking {
    struct klp_tree *tree, *pool;
    enum klp_arch arch;
    bool took; /* in this pass */
};

static bool file_take(struct taking *taking, const char *path, const char *target,
                      struct kelpie_error **err)
{
    taking->took = true;
    if (klp_tree_find(taking->tree, target) == NULL)
        KLP_CHECK(klp_tree_move(taking->pool, target, taking->tree, target, err));
    if (strcmp(path, target) == 0)
        return true;
    char absolute[KLP_TREE_PATH_MAX + 1];
    if (snprintf(absolute, sizeof(absolute), "/%s", target) >= (int)sizeof(absolute))
        return klp_refuse(err, KELPIE_E_CORRUPT, "cannot take library '%s': the path is too long",
                          path);
    return klp_tree_symlink_add(taking->tree, path, absolute, err);
}

/* `path` as a program spells it, with or without "/" in front. */
static bool path_need(struct taking *taking, const char *user, const char *path,
                      struct kelpie_error **err)
{
    char merged[KLP_TREE_PATH_MAX + 1], target[KLP_TREE_PATH_MAX + 1];
    KLP_CHECK(klp_layout_path(path, merged, err));
    klp_tree_resolve(taking->tree, merged, target);
    if (target[0] != '\0')
        return true;
    klp_tree_resolve(taking->pool, merged, target);
    const struct klp_tree_node *node =
        target[0] == '\0' ? NULL : klp_tree_find(taking->pool, target);
    if (node == NULL || node->kind != KLP_TREE_FILE)
        return klp_refuse(err, KELPIE_E_CORRUPT,
                          "cannot build the image: '%s' needs '%s', which no package has", user,
                          merged);
    return file_take(taking, merged, target, err);
}

static bool library_need(struct taking *taking, const char *user, const char *name,
                         struct kelpie_error **err)
{
    char path[KLP_TREE_PATH_MAX + 1];
    int size =
        snprintf(path, sizeof(path), "usr/lib/%s/%s", klp_layout_triplet(taking->arch), name);
    if (size < 0 || (size_t)size >= sizeof(path) || strchr(name, '/') != NULL)
        return klp_refuse(err, KELPIE_E_CORRUPT, "cannot use '%s': it names a bad library", user);
    return path_need(taking, user, path, err);
}

static bool is_module(const char *path)
{
    size_t size = strlen(path);
    return size > 3 && strcmp(path + size - 3, ".ko") == 0;
}

/* What one file needs. `path` is a copy: taking moves the tree's nodes. */
static bool needs_take(struct taking *taking, const char *path, const struct klp_elf *elf,
                       struct kelpie_error **err)
{
    if (elf->arch != taking->arch)
        return klp_refuse(err, KELPIE_E_CORRUPT, "cannot use '%s': it is no program for %s", path,
                          klp_arch_name(taking->arch));
    if (elf->interpreter != NULL)
        KLP_CHECK(path_need(taking, path, elf->interpreter, err));
    for (size_t i = 0; i < elf->needed_count; i++)
        KLP_CHECK(library_need(taking, path, elf->needed[i], err));
    return true;
}

static bool pass(struct taking *taking, struct kelpie_error **err)
{
    char path[KLP_TREE_PATH_MAX + 1];
    for (size_t i = 0; i < taking->tree->count; i++) {
        const struct klp_tree_node *node = &taking->tree->nodes[i];
        struct klp_bytes bytes = {node->data, node->size};
        struct klp_elf elf;
        if (node->kind != KLP_TREE_FILE || is_module(node->path) || !klp_elf_is(bytes))
            continue;
        snprintf(path, sizeof(path), "%s", node->path);
        KLP_CHECK(klp_elf_parse(bytes, path, &elf, err));
        KLP_CHECK(needs_take(taking, path, &elf, err));
    }
    return true;
}

bool klp_libraries_take(struct klp_tree *tree, struct klp_tree *pool, enum klp_arch arch,
                        struct kelpie_error **err)
{
    struct taking taking = {.tree = tree, .pool = pool, .arch = arch, .took = true};
    while (taking.took) { /* ends: every round takes a node from a bounded pool */
        taking.took = false;
        KLP_CHECK(pass(&taking, err));
    }
    return true;
}
