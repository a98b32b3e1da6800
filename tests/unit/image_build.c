/* SPDX-License-Identifier: Apache-2.0 */
/* Whole images, built by the real apt and dpkg from a package source of three small packages made
 * here: no network, no root, nothing of the machine's own package lists. */
#include "image_kit.h"

#include <dirent.h>
#include <ftw.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "base/ext/sha256.h"
#include "image/child.h"
#include "image/image_build.h"
#include "image/recipe.h"

#define DEADLINE_MS 120000

struct place {
    struct klp_env *env;
    char root[64];
    enum klp_arch arch;
};

static const char *arch_name(const struct place *place)
{
    return place->arch == KLP_ARCH_AARCH64 ? "arm64" : "amd64";
}

static void path_of(const struct place *place, const char *name, char out[256])
{
    snprintf(out, 256, "%s/%s", place->root, name);
}

static void file_put(const struct place *place, const char *name, struct klp_bytes content)
{
    char path[256];
    path_of(place, name, path);
    FILE *file = fopen(path, "we");
    assert_non_null(file);
    assert_int_equal(fwrite(content.data, 1, content.size, file), content.size);
    assert_int_equal(fclose(file), 0);
}

/* ---- the package source */

/* Writes the package and describes it in `index`. */
static void package_put(const struct place *place, struct klp_buf *index, const char *name,
                        struct klp_buf *tar)
{
    struct klp_buf deb KLP_AUTO(buf) = KLP_BUF_INIT(KIT_SIZE_MAX);
    struct klp_digest digest;
    char control[256], file[160], hex[KLP_DIGEST_SIZE];
    snprintf(control, sizeof(control),
             "Package: %s\nVersion: 1\nArchitecture: %s\nMaintainer: a <a@b.c>\nDescription: x\n",
             name, arch_name(place));
    klp_tar_end_append(tar);
    kit_deb(&deb, control, klp_buf_view(tar));
    snprintf(file, sizeof(file), "repo/%s_1.deb", name);
    file_put(place, file, klp_buf_view(&deb));
    klp_sha256_once(deb.data, deb.size, &digest);
    klp_digest_text(&digest, hex);
    klp_buf_append_format(index, "%sFilename: ./%s_1.deb\nSize: %zu\nSHA256: %s\n\n", control, name,
                          deb.size, hex);
    klp_buf_clear(tar);
}

static void kernel_tar(const struct place *place, struct klp_buf *tar, const char *without)
{
    struct klp_buf vmlinux KLP_AUTO(buf) = KLP_BUF_INIT(KIT_SIZE_MAX);
    struct klp_buf image KLP_AUTO(buf) = KLP_BUF_INIT(KIT_SIZE_MAX);
    if (place->arch == KLP_ARCH_AARCH64) {
        uint8_t plain[128] = {0};
        memcpy(plain + 56, "ARM\x64", 4);
        klp_buf_append(&image, plain, sizeof(plain));
    } else {
        kit_elf(&vmlinux, KIT_X86_64, NULL, "", true);
        kit_bzimage(&image, klp_buf_view(&vmlinux), (uint32_t)vmlinux.size);
    }
    kit_tar_file(tar, "./boot/vmlinuz-6.1.0-7", klp_buf_view(&image));
    kit_tar_file(tar, "./lib/modules/6.1.0-7/kernel/other.ko", kit_text("other"));
    for (const char *const *name = klp_recipe_modules(place->arch); *name != NULL; name++) {
        char path[128];
        snprintf(path, sizeof(path), "./lib/modules/6.1.0-7/kernel/%s.ko", *name);
        if (strcmp(*name, without) != 0)
            kit_tar_file(tar, path, kit_text(*name));
    }
}

static void tool_run(const struct place *place, const char *const *argv)
{
    struct kelpie_op op = klp_op_plain(place->env, DEADLINE_MS);
    struct klp_child child = {.argv = argv, .stdin_fd = -1};
    struct kelpie_error *err = NULL;
    if (!kelpie_is_ok(klp_child_run(&op, &child, &err)))
        fail_msg("%s", kelpie_error_message(err));
}

/* What apt reads in place of the machine's configuration. */
static void apt_configure(const struct place *place)
{
    char text[1024], path[256];
    snprintf(text, sizeof(text), "deb [trusted=yes] file:%s/repo ./\n", place->root);
    file_put(place, "sources.list", kit_text(text));
    snprintf(text, sizeof(text),
             "Dir::Etc::sourcelist \"%s/sources.list\";\nDir::Etc::sourceparts \"/dev/null\";\n"
             "Dir::State \"%s/state\";\nDir::State::status \"%s/status\";\n"
             "Dir::Cache \"%s/aptcache\";\nAPT::Architecture \"%s\";\nAPT::Architectures \"%s\";\n"
             "APT::Sandbox::User \"root\";\nAcquire::Languages \"none\";\n",
             place->root, place->root, place->root, place->root, arch_name(place),
             arch_name(place));
    file_put(place, "apt.conf", kit_text(text));
    file_put(place, "status", kit_text(""));
    path_of(place, "apt.conf", path);
    setenv("APT_CONFIG", path, 1);
}

static void source_make(const struct place *place, const char *without_module)
{
    static const char *const update[] = {"apt-get", "-q", "update", NULL};
    static const char applets[] = "\0[\0[[\0cat\0sh\0"; /* and an empty name at the end */
    struct klp_buf index KLP_AUTO(buf) = KLP_BUF_INIT(1 << 20);
    struct klp_buf tar KLP_AUTO(buf) = KLP_BUF_INIT(KIT_SIZE_MAX);
    char name[64];
    kernel_tar(place, &tar, without_module);
    snprintf(name, sizeof(name), "linux-image-6.1.0-7-cloud-%s", arch_name(place));
    package_put(place, &index, name, &tar);
    kit_tar_file(&tar, "./bin/busybox",
                 (struct klp_bytes){(const uint8_t *)applets, sizeof(applets)});
    kit_tar_file(&tar, "./usr/share/doc/x", kit_text("x"));
    package_put(place, &index, "busybox-static", &tar);
    snprintf(name, sizeof(name), "linux-image-6.1.0-6-cloud-%s", arch_name(place));
    package_put(place, &index, name, &tar); /* an older kernel, empty: must not be taken */
    file_put(place, "repo/Packages", klp_buf_view(&index));
    apt_configure(place);
    tool_run(place, update);
}

/* ---- building */

static void guest_make(const struct place *place, const char *interpreter)
{
    struct klp_buf guest KLP_AUTO(buf) = KLP_BUF_INIT(1 << 20);
    kit_elf(&guest, place->arch == KLP_ARCH_AARCH64 ? KIT_AARCH64 : KIT_X86_64, interpreter, "",
            false);
    file_put(place, "guest", klp_buf_view(&guest));
}

static kelpie_outcome build_as(const struct place *place, const char *name, const char *recipe,
                               struct klp_image_parts *parts, struct kelpie_error **err)
{
    char guest[256], cache[256];
    path_of(place, "guest", guest);
    path_of(place, "cache", cache);
    struct klp_image_build build = {.name = name,
                                    .recipe = recipe,
                                    .arch = place->arch,
                                    .guest_path = guest,
                                    .cache_dir = cache};
    struct kelpie_op op = klp_op_plain(place->env, DEADLINE_MS);
    return klp_image_build(&op, &build, parts, err);
}

static void build(const struct place *place, struct klp_image_parts *parts)
{
    struct kelpie_error *err = NULL;
    if (!kelpie_is_ok(build_as(place, "base", NULL, parts, &err)))
        fail_msg("%s", kelpie_error_message(err));
}

static void parts_close(struct klp_image_parts *parts)
{
    close(parts->kernel_fd);
    close(parts->initramfs_fd);
}

static void all_read(int fd, const struct klp_object_ref *ref, struct klp_buf *out)
{
    struct klp_digest digest;
    uint8_t piece[4096];
    ssize_t got;
    while ((got = read(fd, piece, sizeof(piece))) > 0)
        klp_buf_append(out, piece, (size_t)got);
    assert_int_equal(out->size, ref->size);
    klp_sha256_once(out->data, out->size, &digest);
    assert_true(klp_digest_equal(&digest, &ref->digest));
}

static bool holds(const struct klp_buf *buf, const char *text)
{
    return memmem(buf->data, buf->size, text, strlen(text)) != NULL;
}

/* Only packages, under their own names. */
static void cache_check(const struct place *place, size_t want)
{
    char path[256];
    size_t count = 0;
    path_of(place, "cache", path);
    DIR *dir = opendir(path);
    for (struct dirent *entry; dir != NULL && (entry = readdir(dir)) != NULL;) {
        size_t size = strlen(entry->d_name);
        if (entry->d_name[0] == '.')
            continue;
        assert_true(size > 4 && strcmp(entry->d_name + size - 4, ".deb") == 0);
        count++;
    }
    if (dir != NULL)
        closedir(dir);
    assert_int_equal(count, want);
}

static void skip_without_apt(void)
{
    if (access("/usr/bin/apt-get", X_OK) == 0 && access("/usr/bin/dpkg-deb", X_OK) == 0)
        return;
    print_message("skipped: apt-get and dpkg-deb are not installed\n");
    skip();
}

static void image_check(const struct place *place, struct klp_image_parts *parts)
{
    struct klp_buf kernel KLP_AUTO(buf) = KLP_BUF_INIT(KIT_SIZE_MAX);
    struct klp_buf initramfs KLP_AUTO(buf) = KLP_BUF_INIT(KIT_SIZE_MAX);
    struct klp_buf text KLP_AUTO(buf) = KLP_BUF_INIT(1 << 20);
    struct klp_image again;
    uint32_t version[3];
    assert_string_equal(parts->image.name, "base");
    assert_int_equal(parts->image.arch, place->arch);
    assert_true(klp_version_parse(parts->image.version, version, NULL));
    assert_false(klp_digest_is_zero(&parts->image.guest));
    klp_image_encode(&parts->image, &text);
    assert_true(klp_image_decode(klp_buf_view(&text), &again, NULL));
    all_read(parts->kernel_fd, &parts->image.kernel, &kernel);
    all_read(parts->initramfs_fd, &parts->image.initramfs, &initramfs);
    assert_int_equal(kernel.size, place->arch == KLP_ARCH_AARCH64 ? 128 : KIT_ELF_SIZE);
    assert_memory_equal(initramfs.data, "070701", 6);
    assert_true(holds(&initramfs, "/usr/lib/modules/6.1.0-7/kernel/virtio_ring.ko\n"
                                  "/usr/lib/modules/6.1.0-7/kernel/virtio.ko\n"
                                  "/usr/lib/modules/6.1.0-7/kernel/virtio_mmio.ko\n"));
    assert_true(holds(&initramfs, "usr/bin/cat"));
    assert_true(holds(&initramfs, "etc/os-release"));
    assert_false(holds(&initramfs, "other.ko"));
    assert_false(holds(&initramfs, "usr/share/doc"));
}

static void twice_the_same(struct place *place, enum klp_arch arch)
{
    struct klp_image_parts parts[2];
    place->arch = arch;
    source_make(place, "");
    guest_make(place, NULL);
    build(place, &parts[0]);
    cache_check(place, 2);
    build(place, &parts[1]);
    assert_true(klp_digest_equal(&parts[0].image.kernel.digest, &parts[1].image.kernel.digest));
    assert_true(
        klp_digest_equal(&parts[0].image.initramfs.digest, &parts[1].image.initramfs.digest));
    image_check(place, &parts[0]);
    parts_close(&parts[0]);
    parts_close(&parts[1]);
    cache_check(place, 2);
}

static void test_image_build__x86_64_twice_gives_the_same_bytes(void **state)
{
    skip_without_apt();
    twice_the_same(*state, KLP_ARCH_X86_64);
}

static void test_image_build__aarch64_twice_gives_the_same_bytes(void **state)
{
    skip_without_apt();
    twice_the_same(*state, KLP_ARCH_AARCH64);
}

static void test_image_build__cached_packages_need_no_source(void **state)
{
    struct place *place = *state;
    struct klp_image_parts parts;
    char path[256], moved[256];
    skip_without_apt();
    source_make(place, "");
    guest_make(place, NULL);
    build(place, &parts);
    parts_close(&parts);
    path_of(place, "repo", path);
    path_of(place, "gone", moved);
    assert_int_equal(rename(path, moved), 0);
    build(place, &parts);
    parts_close(&parts);
}

static void test_image_build__a_damaged_cache_is_mended(void **state)
{
    struct place *place = *state;
    struct klp_image_parts parts;
    char name[256];
    skip_without_apt();
    source_make(place, "");
    guest_make(place, NULL);
    build(place, &parts);
    parts_close(&parts);
    snprintf(name, sizeof(name), "cache/busybox-static_1_%s.deb", arch_name(place));
    file_put(place, name, kit_text("damaged"));
    path_of(place, "cache/partial", name);
    assert_int_equal(mkdir(name, 0700), 0);
    file_put(place, "cache/partial/left", kit_text("by a builder that was killed"));
    build(place, &parts);
    parts_close(&parts);
    cache_check(place, 2);
}

/* The source's file is not what its index says: apt notices, and nothing is kept. */
static void test_image_build__wrong_packages_are_not_kept(void **state)
{
    struct place *place = *state;
    struct klp_image_parts parts;
    skip_without_apt();
    source_make(place, "");
    guest_make(place, NULL);
    file_put(place, "repo/busybox-static_1.deb", kit_text("evil"));
    KIT_REFUSED(build_as(place, "base", NULL, &parts, &err).kind, KELPIE_FAIL, KELPIE_E_UNREACHABLE,
                "busybox-static");
    cache_check(place, 0);
}

static void test_image_build__a_missing_module_is_named(void **state)
{
    struct place *place = *state;
    struct klp_image_parts parts;
    skip_without_apt();
    source_make(place, "virtio_console");
    guest_make(place, NULL);
    KIT_REFUSED(build_as(place, "base", NULL, &parts, &err).kind, KELPIE_FAIL, KELPIE_E_CORRUPT,
                "holds no module 'virtio_console'");
    cache_check(place, 2);
}

static void test_image_build__missing_packages_are_named(void **state)
{
    struct place *place = *state;
    struct klp_image_parts parts;
    skip_without_apt();
    source_make(place, "");
    guest_make(place, NULL);
    KIT_REFUSED(build_as(place, "python", NULL, &parts, &err).kind, KELPIE_FAIL,
                KELPIE_E_UNREACHABLE, "python3");
    KIT_REFUSED(build_as(place, "mine", "python", &parts, &err).kind, KELPIE_FAIL,
                KELPIE_E_UNREACHABLE, "python3");
}

static void test_image_build__without_lists_it_says_what_to_do(void **state)
{
    struct place *place = *state;
    struct klp_image_parts parts;
    struct kelpie_error *err = NULL;
    skip_without_apt();
    apt_configure(place);
    place->arch = klp_arch_host();
    guest_make(place, NULL);
    assert_false(kelpie_is_ok(build_as(place, "base", NULL, &parts, &err)));
    assert_string_equal(kelpie_error_remedy(err), "make deps");
    kit_assert_error(err, KELPIE_E_UNREACHABLE, "package lists do not have it");
    err = NULL;
    place->arch = place->arch == KLP_ARCH_AARCH64 ? KLP_ARCH_X86_64 : KLP_ARCH_AARCH64;
    guest_make(place, NULL);
    assert_false(kelpie_is_ok(build_as(place, "base", NULL, &parts, &err)));
    assert_non_null(strstr(kelpie_error_remedy(err), "dpkg --add-architecture"));
    kit_assert_error(err, KELPIE_E_UNREACHABLE, "package lists do not have it");
}

static void test_image_build__bad_orders_are_refused_before_any_download(void **state)
{
    struct place *place = *state;
    struct klp_image_parts parts;
    KIT_REFUSED(build_as(place, "base", NULL, &parts, &err).kind, KELPIE_FAIL, KELPIE_E_NOT_FOUND,
                "guest agent");
    file_put(place, "guest", kit_text("#!/bin/sh\n"));
    KIT_REFUSED(build_as(place, "base", NULL, &parts, &err).kind, KELPIE_FAIL, KELPIE_E_CORRUPT,
                "no 64-bit ELF");
    file_put(place, "guest", kit_text(""));
    KIT_REFUSED(build_as(place, "base", NULL, &parts, &err).kind, KELPIE_FAIL, KELPIE_E_INVALID,
                "guest agent");
    guest_make(place, "/lib/ld.so");
    KIT_REFUSED(build_as(place, "base", NULL, &parts, &err).kind, KELPIE_FAIL, KELPIE_E_INVALID,
                "not linked statically");
    guest_make(place, NULL);
    place->arch = KLP_ARCH_AARCH64;
    KIT_REFUSED(build_as(place, "base", NULL, &parts, &err).kind, KELPIE_FAIL, KELPIE_E_INVALID,
                "not for aarch64");
    place->arch = KLP_ARCH_NONE;
    KIT_REFUSED(build_as(place, "base", NULL, &parts, &err).kind, KELPIE_FAIL, KELPIE_E_UNSUPPORTED,
                "x86_64 or aarch64");
    place->arch = KLP_ARCH_X86_64;
    KIT_REFUSED(build_as(place, "base", "perl", &parts, &err).kind, KELPIE_FAIL, KELPIE_E_INVALID,
                "no recipe 'perl'");
    KIT_REFUSED(build_as(place, "No", NULL, &parts, &err).kind, KELPIE_FAIL, KELPIE_E_INVALID,
                "image");
}

/* Killed at many instants: what is left is packages, or a folder the next builder empties. */
static void test_image_build__killed_it_leaves_only_packages(void **state)
{
    struct place *place = *state;
    struct klp_image_parts parts;
    skip_without_apt();
    source_make(place, "");
    guest_make(place, NULL);
    for (unsigned delay_us = 50000; delay_us < 1500000; delay_us *= 3) {
        pid_t pid = fork();
        assert_true(pid >= 0);
        if (pid == 0) {
            struct kelpie_error *err = NULL;
            kelpie_outcome outcome = build_as(place, "base", NULL, &parts, &err);
            _exit(kelpie_is_ok(outcome) ? 0 : 1);
        }
        usleep(delay_us);
        kill(pid, SIGKILL);
        assert_int_equal(waitpid(pid, NULL, 0), pid);
    }
    build(place, &parts);
    parts_close(&parts);
    cache_check(place, 2);
}

/* ---- the place */

static int place_setup(void **state)
{
    static struct place place;
    static const char *const directories[] = {"repo", "state", "aptcache"};
    char path[256];
    place = (struct place){.arch = KLP_ARCH_X86_64, .env = kit_env()};
    snprintf(place.root, sizeof(place.root), "/tmp/kelpie-test-XXXXXX");
    assert_non_null(mkdtemp(place.root));
    for (size_t i = 0; i < KLP_COUNT(directories); i++) {
        path_of(&place, directories[i], path);
        assert_int_equal(mkdir(path, 0755), 0);
    }
    *state = &place;
    return 0;
}

static int entry_remove(const char *path, const struct stat *info, int kind, struct FTW *where)
{
    (void)info;
    (void)kind;
    (void)where;
    return remove(path);
}

static int place_teardown(void **state)
{
    const struct place *place = *state;
    unsetenv("APT_CONFIG");
    klp_env_posix_destroy(place->env);
    return nftw(place->root, entry_remove, 16, FTW_DEPTH | FTW_PHYS);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, place_setup, place_teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_image_build__x86_64_twice_gives_the_same_bytes),
        TEST(test_image_build__aarch64_twice_gives_the_same_bytes),
        TEST(test_image_build__cached_packages_need_no_source),
        TEST(test_image_build__a_damaged_cache_is_mended),
        TEST(test_image_build__wrong_packages_are_not_kept),
        TEST(test_image_build__a_missing_module_is_named),
        TEST(test_image_build__missing_packages_are_named),
        TEST(test_image_build__without_lists_it_says_what_to_do),
        TEST(test_image_build__bad_orders_are_refused_before_any_download),
        TEST(test_image_build__killed_it_leaves_only_packages),
    };
    return cmocka_run_group_tests_name("image_build", tests, NULL, NULL);
}
