/* SPDX-License-Identifier: Apache-2.0 */
/* A file tree in memory, as a sorted array: a few thousand nodes, so moving them is cheap. */
#include "image/tree.h"

#include <string.h>

struct klp_tree *klp_tree_create(void)
{
    return KLP_NEW(struct klp_tree);
}

static void node_finish(struct klp_tree_node *node)
{
    klp_mem_free(node->path);
    klp_mem_free(node->data);
}

void klp_tree_destroy(struct klp_tree *tree)
{
    if (tree == NULL)
        return;
    for (size_t i = 0; i < tree->count; i++)
        node_finish(&tree->nodes[i]);
    klp_mem_free(tree->nodes);
    klp_mem_free(tree);
}

static bool component_is_good(const char *text, size_t size)
{
    if (size == 0 || size > 255)
        return false;
    if (text[0] == '.' && (size == 1 || (size == 2 && text[1] == '.')))
        return false;
    for (size_t i = 0; i < size; i++)
        if ((unsigned char)text[i] < 0x20 || text[i] == 0x7f)
            return false;
    return true;
}

bool klp_tree_path_check(const char *path, struct kelpie_error **err)
{
    if (strlen(path) > KLP_TREE_PATH_MAX)
        return klp_refuse(err, KELPIE_E_CORRUPT,
                          "cannot place a file: a path of %zu bytes is too long", strlen(path));
    for (const char *at = path;; at++) {
        size_t size = strcspn(at, "/");
        if (!component_is_good(at, size))
            return klp_refuse(err, KELPIE_E_CORRUPT, "cannot place a file: bad path of %zu bytes",
                              strlen(path));
        at += size;
        if (*at == '\0')
            return true;
    }
}

/* Index of `path`, or of the place where it belongs. */
static size_t lower_bound(const struct klp_tree *tree, const char *path)
{
    size_t low = 0, high = tree->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (strcmp(tree->nodes[middle].path, path) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static struct klp_tree_node *find(const struct klp_tree *tree, const char *path)
{
    size_t at = lower_bound(tree, path);
    if (at == tree->count || strcmp(tree->nodes[at].path, path) != 0)
        return NULL;
    return &tree->nodes[at];
}

const struct klp_tree_node *klp_tree_find(const struct klp_tree *tree, const char *path)
{
    return find(tree, path);
}

static bool ends_with(const char *text, const char *suffix)
{
    size_t size = strlen(text), suffix_size = strlen(suffix);
    return size >= suffix_size && strcmp(text + size - suffix_size, suffix) == 0;
}

const struct klp_tree_node *klp_tree_find_like(const struct klp_tree *tree, const char *prefix,
                                               const char *suffix)
{
    size_t prefix_size = strlen(prefix);
    for (size_t i = lower_bound(tree, prefix); i < tree->count; i++) {
        if (strncmp(tree->nodes[i].path, prefix, prefix_size) != 0)
            return NULL;
        if (ends_with(tree->nodes[i].path + prefix_size, suffix))
            return &tree->nodes[i];
    }
    return NULL;
}

static bool room_make(struct klp_tree *tree, struct kelpie_error **err)
{
    if (tree->count < tree->capacity)
        return true;
    if (tree->count >= KLP_TREE_NODES_MAX)
        return klp_refuse(err, KELPIE_E_LIMIT, "cannot build the image: more than %u files",
                          KLP_TREE_NODES_MAX);
    size_t capacity = tree->capacity == 0 ? 256 : tree->capacity * 2;
    void *grown = klp_mem_resize(tree->nodes, capacity * sizeof(*tree->nodes));
    if (grown == NULL)
        return klp_refuse(err, KELPIE_E_NO_MEMORY, "cannot build the image: %zu files", capacity);
    tree->nodes = grown;
    tree->capacity = capacity;
    return true;
}

static bool parents_add(struct klp_tree *tree, const char *path, struct kelpie_error **err)
{
    char parent[KLP_TREE_PATH_MAX + 1];
    for (const char *slash = strchr(path, '/'); slash != NULL; slash = strchr(slash + 1, '/')) {
        size_t size = (size_t)(slash - path);
        memcpy(parent, path, size);
        parent[size] = '\0';
        KLP_CHECK(klp_tree_directory_add(tree, parent, 0755, err));
    }
    return true;
}

/* Takes over *node, whatever happens. */
static bool node_add(struct klp_tree *tree, const char *path, struct klp_tree_node node,
                     struct kelpie_error **err)
{
    bool done = klp_tree_path_check(path, err) && parents_add(tree, path, err);
    if (done && find(tree, path) != NULL)
        done = klp_refuse(err, KELPIE_E_EXISTS, "cannot place '%s': it is there already", path);
    if (done && node.size > KLP_TREE_BYTES_MAX - tree->bytes)
        done = klp_refuse(err, KELPIE_E_LIMIT, "cannot place '%s': more than %u bytes in all", path,
                          KLP_TREE_BYTES_MAX);
    if (!done || !room_make(tree, err)) {
        klp_mem_free(node.data);
        return false;
    }
    size_t at = lower_bound(tree, path);
    memmove(&tree->nodes[at + 1], &tree->nodes[at], (tree->count - at) * sizeof(*tree->nodes));
    node.path = klp_mem_string(path);
    node.mode &= 01777; /* no set-id bits */
    tree->nodes[at] = node;
    tree->count++;
    tree->bytes += node.size;
    return true;
}

bool klp_tree_file_give(struct klp_tree *tree, const char *path, uint32_t mode, uint8_t *data,
                        size_t size, struct kelpie_error **err)
{
    struct klp_tree_node node = {.kind = KLP_TREE_FILE, .mode = mode, .data = data, .size = size};
    return node_add(tree, path, node, err);
}

bool klp_tree_file_add(struct klp_tree *tree, const char *path, uint32_t mode, const void *data,
                       size_t size, struct kelpie_error **err)
{
    uint8_t *copy = size < KLP_TREE_BYTES_MAX ? klp_mem_try(size + 1) : NULL;
    if (copy == NULL)
        return klp_refuse(err, KELPIE_E_NO_MEMORY, "cannot place '%s': %zu bytes", path, size);
    if (size > 0)
        memcpy(copy, data, size);
    return klp_tree_file_give(tree, path, mode, copy, size, err);
}

bool klp_tree_text_add(struct klp_tree *tree, const char *path, uint32_t mode, const char *text,
                       struct kelpie_error **err)
{
    return klp_tree_file_add(tree, path, mode, text, strlen(text), err);
}

bool klp_tree_directory_add(struct klp_tree *tree, const char *path, uint32_t mode,
                            struct kelpie_error **err)
{
    const struct klp_tree_node *there = find(tree, path);
    if (there != NULL && there->kind == KLP_TREE_DIRECTORY)
        return true;
    if (there != NULL)
        return klp_refuse(err, KELPIE_E_CORRUPT, "cannot place '%s': it is no directory", path);
    struct klp_tree_node node = {.kind = KLP_TREE_DIRECTORY, .mode = mode};
    return node_add(tree, path, node, err);
}

bool klp_tree_symlink_add(struct klp_tree *tree, const char *path, const char *target,
                          struct kelpie_error **err)
{
    size_t size = strlen(target);
    if (size == 0 || size > KLP_TREE_PATH_MAX)
        return klp_refuse(err, KELPIE_E_CORRUPT, "cannot place '%s': bad target of %zu bytes", path,
                          size);
    struct klp_tree_node node = {.kind = KLP_TREE_SYMLINK,
                                 .mode = 0777,
                                 .data = (uint8_t *)klp_mem_string(target),
                                 .size = size};
    return node_add(tree, path, node, err);
}

bool klp_tree_device_add(struct klp_tree *tree, const char *path, uint32_t mode, uint32_t major,
                         uint32_t minor, struct kelpie_error **err)
{
    struct klp_tree_node node = {
        .kind = KLP_TREE_CHAR_DEVICE, .mode = mode, .major = major, .minor = minor};
    return node_add(tree, path, node, err);
}

bool klp_tree_move(struct klp_tree *from, const char *path, struct klp_tree *to,
                   const char *to_path, struct kelpie_error **err)
{
    struct klp_tree_node *node = find(from, path);
    if (node == NULL || node->kind == KLP_TREE_DIRECTORY)
        return klp_refuse(err, KELPIE_E_NOT_FOUND, "cannot take '%s': no such file in the packages",
                          path);
    struct klp_tree_node moved = *node;
    size_t at = (size_t)(node - from->nodes);
    memmove(node, node + 1, (from->count - at - 1) * sizeof(*node));
    from->count--;
    from->bytes -= moved.size;
    char *old_path = moved.path;
    bool done = node_add(to, to_path, moved, err);
    klp_mem_free(old_path);
    return done;
}

/* The longest prefix of `path` that is a symlink; *out_rest is what follows it ("" or "/..."). */
static const struct klp_tree_node *link_in(const struct klp_tree *tree, const char *path,
                                           const char **out_rest)
{
    char prefix[KLP_TREE_PATH_MAX + 1];
    for (size_t size = strcspn(path, "/");; size += 1 + strcspn(path + size + 1, "/")) {
        memcpy(prefix, path, size);
        prefix[size] = '\0';
        const struct klp_tree_node *node = find(tree, prefix);
        *out_rest = path + size;
        if (node != NULL && node->kind == KLP_TREE_SYMLINK)
            return node;
        if (path[size] == '\0')
            return NULL;
    }
}

/* Appends the components of `path` to `out`, working "." and ".." off; false = too long. */
static bool components_append(char *out, const char *path)
{
    while (*path != '\0') {
        size_t size = strcspn(path, "/");
        size_t used = strlen(out);
        if (size == 2 && memcmp(path, "..", 2) == 0) {
            char *slash = strrchr(out, '/');
            *(slash != NULL ? slash : out) = '\0';
        } else if (size > 0 && !(size == 1 && *path == '.')) {
            if (used + 1 + size > KLP_TREE_PATH_MAX)
                return false;
            if (used > 0)
                out[used++] = '/';
            memcpy(out + used, path, size);
            out[used + size] = '\0';
        }
        path += size;
        path += strspn(path, "/");
    }
    return true;
}

void klp_tree_resolve(const struct klp_tree *tree, const char *path, char *out)
{
    char next[KLP_TREE_PATH_MAX + 1];
    out[0] = '\0';
    bool fits = components_append(out, path);
    for (int links = 0; fits && links < 16; links++) {
        const char *rest = "";
        const struct klp_tree_node *link = out[0] == '\0' ? NULL : link_in(tree, out, &rest);
        if (link == NULL) {
            if (find(tree, out) == NULL)
                out[0] = '\0';
            return;
        }
        const char *target = (const char *)link->data;
        next[0] = '\0';
        if (target[0] != '/') {
            const char *slash = strrchr(link->path, '/');
            size_t size = slash == NULL ? 0 : (size_t)(slash - link->path);
            memcpy(next, link->path, size);
            next[size] = '\0';
        }
        fits = components_append(next, target) && components_append(next, rest);
        memcpy(out, next, sizeof(next));
    }
    out[0] = '\0';
}
