/* SPDX-License-Identifier: Apache-2.0 */
/* Packages: what apt's answers mean, and the cache that trusts nothing but a hash. */
#include "image_kit.h"

#include <dirent.h>
#include <sys/file.h>
#include <sys/stat.h>

#include "base/ext/sha256.h"
#include "image/fetch.h"

#define HEX "3d3fdbe91d4660c873e14b092c213fe81c1da6362daa236eb25d0171eb108744"

static void test_image_fetch__a_line(void **state)
{
    struct klp_package package;
    char text[KLP_DIGEST_SIZE];
    (void)state;
    assert_true(
        klp_fetch_line_parse("'http://h/p/busybox-static_1%2bb1_amd64.deb' "
                             "busybox-static_1%3a1.35.0-4+deb12u1_amd64.deb 928188 SHA256:" HEX,
                             &package, NULL));
    assert_string_equal(package.name, "busybox-static");
    assert_string_equal(package.file, "busybox-static_1%3a1.35.0-4+deb12u1_amd64.deb");
    assert_int_equal(package.size, 928188);
    klp_digest_text(&package.sha256, text);
    assert_string_equal(text, HEX);
}

static void test_image_fetch__bad_lines_are_refused(void **state)
{
    static const char *const bad[] = {
        "",
        "'",
        "''",
        "'u' a_1.deb 1",
        "'u' a_1.deb 1 SHA256:",
        "'u' a_1.deb 1 MD5Sum:d41d8cd98f00b204e9800998ecf8427e",
        "'u' a_1.deb 1 SHA256:" HEX "00",
        "'u' a_1.deb 1 SHA256:" HEX " more",
        "'u' a_1.deb -1 SHA256:" HEX,
        "'u' a_1.deb 0x10 SHA256:" HEX,
        "'u' a_1.deb 99999999999999999999 SHA256:" HEX,
        "'u' ../a_1.deb 1 SHA256:" HEX,
        "'u' /etc/a_1.deb 1 SHA256:" HEX,
        "'u' .a_1.deb 1 SHA256:" HEX,
        "'u' a_1.dsc 1 SHA256:" HEX,
        "'u' _1.deb 1 SHA256:" HEX,
        "'u' a b_1.deb 1 SHA256:" HEX,
        "u a_1.deb 1 SHA256:" HEX,
        " 'u' a_1.deb 1 SHA256:" HEX,
    };
    char line[700];
    struct klp_package package;
    (void)state;
    for (size_t i = 0; i < KLP_COUNT(bad); i++)
        KIT_REFUSED(klp_fetch_line_parse(bad[i], &package, &err), false, KELPIE_E_PROTOCOL,
                    "apt-get's answer");
    snprintf(line, sizeof(line), "'u' a_%0300d.deb 1 SHA256:" HEX, 0);
    KIT_REFUSED(klp_fetch_line_parse(line, &package, &err), false, KELPIE_E_PROTOCOL, "answer");
    snprintf(line, sizeof(line), "'u' %0100d_1.deb 1 SHA256:" HEX, 0);
    KIT_REFUSED(klp_fetch_line_parse(line, &package, &err), false, KELPIE_E_PROTOCOL, "answer");
    KIT_REFUSED(klp_fetch_line_parse("'u' a_1.deb 999999999999 SHA256:" HEX, &package, &err), false,
                KELPIE_E_LIMIT, "'a'");
}

static void choose(const char *names, enum klp_arch arch, const char *want)
{
    char out[64];
    uint8_t *copy = kit_copy(names, strlen(names));
    klp_fetch_kernel_choose((struct klp_bytes){copy, strlen(names)}, arch, out, sizeof(out));
    assert_string_equal(out, want);
    free(copy);
}

static void test_image_fetch__the_newest_kernel(void **state)
{
    static const char names[] = "linux-image-6.1.0-9-cloud-amd64\n"
                                "linux-image-6.1.0-56-cloud-amd64-dbg\n"
                                "linux-image-6.1.0-57-cloud-amd64-unsigned\n"
                                "linux-image-6.1.0-56-cloud-amd64\n"
                                "linux-image-6.1.0-60-cloud-arm64\n"
                                "linux-image-6.1.0-99-amd64\n"
                                "linux-image-6.1.0-rt-cloud-amd64\n"
                                "linux-image-6.1.0-1x-cloud-amd64\n"
                                "linux-image-6.1.0--cloud-amd64\n"
                                "linux-image-6.1.0-cloud-amd64\n"
                                "linux-image-6.10.0-99-cloud-amd64\n"
                                "linux-image-6.1.0-99999999999999999999-cloud-amd64\n"
                                "linux-image-6.1.0-10-cloud-amd64";
    (void)state;
    choose(names, KLP_ARCH_X86_64, "linux-image-6.1.0-56-cloud-amd64");
    choose(names, KLP_ARCH_AARCH64, "linux-image-6.1.0-60-cloud-arm64");
    choose("linux-image-6.1.0-7-cloud-amd64", KLP_ARCH_X86_64, "linux-image-6.1.0-7-cloud-amd64");
    choose("", KLP_ARCH_X86_64, "");
    choose("\n\n", KLP_ARCH_X86_64, "");
    choose("linux-image-6.1.0-7-cloud-amd64", KLP_ARCH_AARCH64, "");
}

/* ---- the cache */

struct cache {
    struct klp_env *env;
    char path[64];
};

static struct klp_package package_make(const char *name, const char *content)
{
    struct klp_package package = {.size = strlen(content)};
    snprintf(package.name, sizeof(package.name), "%s", name);
    snprintf(package.file, sizeof(package.file), "%s_1_all.deb", name);
    klp_sha256_once(content, strlen(content), &package.sha256);
    return package;
}

static void file_put(const struct cache *cache, const char *name, const char *content)
{
    char path[256];
    snprintf(path, sizeof(path), "%s/%s", cache->path, name);
    FILE *file = fopen(path, "we");
    assert_non_null(file);
    fputs(content, file);
    fclose(file);
}

static size_t files_count(const char *path)
{
    size_t count = 0;
    DIR *dir = opendir(path);
    assert_non_null(dir);
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;)
        count += entry->d_name[0] != '.';
    closedir(dir);
    return count;
}

static kelpie_outcome packages_get(const struct cache *cache, const struct klp_package *packages,
                                   size_t count, uint64_t timeout_ms, struct kelpie_error **err)
{
    struct kelpie_op op = klp_op_plain(cache->env, timeout_ms);
    return klp_fetch_packages(&op, klp_arch_host(), cache->path, packages, count, NULL, NULL, err);
}

static void test_image_fetch__what_is_cached_needs_no_apt(void **state)
{
    const struct cache *cache = *state;
    struct klp_package packages[] = {package_make("a", "content a"), package_make("b", "")};
    char text[16] = "";
    int fd = -1;
    file_put(cache, "a_1_all.deb", "content a");
    file_put(cache, "b_1_all.deb", "");
    assert_true(kelpie_is_ok(packages_get(cache, packages, 2, 20000, NULL)));
    assert_int_equal(files_count(cache->path), 2);
    assert_true(klp_fetch_open(cache->path, &packages[0], &fd, NULL));
    assert_int_equal(read(fd, text, sizeof(text)), 9);
    assert_string_equal(text, "content a");
    close(fd);
}

static void test_image_fetch__wrong_bytes_are_not_opened(void **state)
{
    const struct cache *cache = *state;
    struct klp_package package = package_make("a", "content a");
    char path[256];
    int fd = -1;
    KIT_REFUSED(klp_fetch_open(cache->path, &package, &fd, &err), false, KELPIE_E_NOT_FOUND, "a_1");
    file_put(cache, package.file, "content b");
    KIT_REFUSED(klp_fetch_open(cache->path, &package, &fd, &err), false, KELPIE_E_CORRUPT,
                "SHA-256");
    file_put(cache, package.file, "content a and more");
    KIT_REFUSED(klp_fetch_open(cache->path, &package, &fd, &err), false, KELPIE_E_CORRUPT, "size");
    file_put(cache, "real", "content a");
    snprintf(path, sizeof(path), "%s/%s", cache->path, package.file);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(symlink("real", path), 0);
    assert_false(klp_fetch_open(cache->path, &package, &fd, NULL));
    assert_int_equal(unlink(path), 0);
    assert_int_equal(mkfifo(path, 0600), 0); /* must not block */
    assert_false(klp_fetch_open(cache->path, &package, &fd, NULL));
    assert_int_equal(fd, -1);
}

/* No network is needed to be told so: apt knows no such package. */
static void test_image_fetch__what_cannot_be_had_is_named(void **state)
{
    const struct cache *cache = *state;
    struct klp_package package = package_make("kelpie-no-such-package", "x");
    struct kelpie_op op = klp_op_plain(cache->env, 60000);
    if (access("/usr/bin/apt-get", X_OK) != 0) {
        print_message("skipped: apt-get is not installed\n");
        skip();
    }
    KIT_REFUSED(packages_get(cache, &package, 1, 60000, &err).kind, KELPIE_FAIL,
                KELPIE_E_UNREACHABLE, "kelpie-no-such-package");
    assert_int_equal(files_count(cache->path), 0);
    KIT_REFUSED(klp_fetch_resolve(&op, klp_arch_host(), &package, 1, &err).kind, KELPIE_FAIL,
                KELPIE_E_UNREACHABLE, "kelpie-no-such-package");
}

/* Another builder holds the cache. */
static void test_image_fetch__waits_for_the_cache_and_not_for_ever(void **state)
{
    const struct cache *cache = *state;
    struct klp_package package = package_make("a", "content a");
    int fd = open(cache->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    assert_int_equal(flock(fd, LOCK_EX), 0);
    KIT_REFUSED(packages_get(cache, &package, 1, 300, &err).kind, KELPIE_FAIL, KELPIE_E_TIMEOUT,
                "");
    close(fd);
    file_put(cache, package.file, "content a");
    assert_true(kelpie_is_ok(packages_get(cache, &package, 1, 20000, NULL)));
}

static int cache_setup(void **state)
{
    static struct cache cache;
    snprintf(cache.path, sizeof(cache.path), "/tmp/kelpie-test-XXXXXX");
    assert_non_null(mkdtemp(cache.path));
    cache.env = kit_env();
    *state = &cache;
    return 0;
}

static int cache_teardown(void **state)
{
    const struct cache *cache = *state;
    DIR *dir = opendir(cache->path);
    assert_non_null(dir);
    for (struct dirent *entry; (entry = readdir(dir)) != NULL;)
        unlinkat(dirfd(dir), entry->d_name, 0);
    closedir(dir);
    assert_int_equal(rmdir(cache->path), 0); /* fails if a directory was left */
    klp_env_posix_destroy(cache->env);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_image_fetch__a_line),
        cmocka_unit_test(test_image_fetch__bad_lines_are_refused),
        cmocka_unit_test(test_image_fetch__the_newest_kernel),
        cmocka_unit_test_setup_teardown(test_image_fetch__what_is_cached_needs_no_apt, cache_setup,
                                        cache_teardown),
        cmocka_unit_test_setup_teardown(test_image_fetch__wrong_bytes_are_not_opened, cache_setup,
                                        cache_teardown),
        cmocka_unit_test_setup_teardown(test_image_fetch__what_cannot_be_had_is_named, cache_setup,
                                        cache_teardown),
        cmocka_unit_test_setup_teardown(test_image_fetch__waits_for_the_cache_and_not_for_ever,
                                        cache_setup, cache_teardown),
    };
    return cmocka_run_group_tests_name("image_fetch", tests, NULL, NULL);
}
