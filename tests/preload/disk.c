/* A disk that can be made to fail, and whose power can be cut: stands between a process and its C library for the files
 * below one directory. What a process does to them is written down in order, so that a test can tell afterwards what
 * a disk might hold at any moment; and what it is told to break breaks.
 *
 *   DISK_ROOT     the directory, absolute; everything else passes untouched
 *   DISK_JOURNAL  where operations are written down, outside of the directory; none when unset
 *   DISK_CONTROL  a file of rules, read again whenever it has changed, which also sets all counts back to 0:
 *                   fail KIND N ERROR [on]   the N-th operation of KIND fails with ERROR; with `on` all after it, too.
 *                                            KIND: open write fsync truncate unlink mkdir, or change (all but fsync);
 *                                            ERROR: EIO ENOSPC EDQUOT EROFS, or TORN: a write does half of it, then EIO
 *                   slow MS                  each fsync takes so long
 *                   space TOTAL OTHERS       a disk of TOTAL bytes of which OTHERS are taken by others
 *                   full TOTAL GRABS         one of which others have just taken all that was free, and so many times take
 *                                            all that is freed
 *                 A rule that has been used makes itself known by a file DISK_CONTROL.used.
 *
 * An fsync does nothing here: the journal says what would have lasted. Maps of memory (the -shm file) are not seen. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#define FDS 4096
#define RULES 8
#define BLOCK 4096

enum kind { OPEN, WRITE, FSYNC, TRUNCATE, UNLINK, MKDIR, CHANGE, KINDS };
static const char *const kinds[KINDS] = {"open", "write", "fsync", "truncate", "unlink", "mkdir", "change"};

static const struct { const char *name; int number; } errors[] = {
    {"EIO", EIO}, {"ENOSPC", ENOSPC}, {"EDQUOT", EDQUOT}, {"EROFS", EROFS}, {"TORN", -1},
};

static struct { enum kind kind; long nth; int error; int on; } rules[RULES];
static int rule_count;
static long counts[KINDS];
static long slow_ms;
static long long total, others, grabs;

static char root[512];
static size_t root_length;
static int journal = -1;
static const char *control;
static char control_text[1024];
static char *paths[FDS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

static int real_open(const char *path, int flags, mode_t mode) {
    static int (*real)(const char *, int, ...);
    if (!real) real = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, "open64");
    return real(path, flags, mode);
}

static ssize_t real_write(int fd, const void *bytes, size_t length) {
    REAL(write);
    return real(fd, bytes, length);
}

static ssize_t real_pwrite(int fd, const void *bytes, size_t length, off_t offset) {
    REAL(pwrite);
    return real(fd, bytes, length, offset);
}

static int real_close(int fd) {
    REAL(close);
    return real(fd);
}

__attribute__((constructor)) static void start(void) {
    const char *value = getenv("DISK_ROOT");
    if (value && realpath(value, root)) root_length = strlen(root);
    control = getenv("DISK_CONTROL");
    value = getenv("DISK_JOURNAL");
    if (value) journal = real_open(value, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
}

/* The path below the root, or NULL. */
static const char *below(const char *path) {
    if (!root_length || !path || strncmp(path, root, root_length)) return NULL;
    if (path[root_length] == '/') return path + root_length + 1;
    return path[root_length] ? NULL : path + root_length;
}

static const char *tracked(int fd) { return fd >= 0 && fd < FDS ? paths[fd] : NULL; }

/* One record: operation, length of the path, offset, length of the data; then both. */
static void note(char operation, const char *path, long long offset, const void *data, size_t length) {
    if (journal < 0) return;
    size_t path_length = strlen(path), size = 16 + path_length + length;
    unsigned char *record = malloc(size);
    if (!record) abort();
    uint32_t length32 = (uint32_t)length;
    int64_t offset64 = offset;
    record[0] = (unsigned char)operation;
    record[1] = 0;
    record[2] = (unsigned char)(path_length & 0xff);
    record[3] = (unsigned char)(path_length >> 8);
    memcpy(record + 4, &offset64, 8);
    memcpy(record + 12, &length32, 4);
    memcpy(record + 16, path, path_length);
    if (length) memcpy(record + 16 + path_length, data, length);
    if (real_write(journal, record, size) != (ssize_t)size) abort();
    free(record);
}

/* Bytes taken below the root, two levels deep, in whole blocks; memory maps do not count. */
static long long taken(const char *path, int depth) {
    long long sum = 0;
    DIR *directory = opendir(path);
    if (!directory) return 0;
    for (struct dirent *entry; (entry = readdir(directory));) {
        char name[1024];
        struct stat found;
        if (entry->d_name[0] == '.') continue;
        snprintf(name, sizeof name, "%s/%s", path, entry->d_name);
        if (stat(name, &found)) continue;
        if (S_ISDIR(found.st_mode)) sum += depth ? taken(name, depth - 1) : 0;
        else sum += (found.st_size + BLOCK - 1) / BLOCK * BLOCK;
    }
    closedir(directory);
    return sum;
}

static void read_rules(void) {
    char text[sizeof control_text] = "";
    int fd = control ? real_open(control, O_RDONLY | O_CLOEXEC, 0) : -1;
    if (fd < 0) return;
    ssize_t length = read(fd, text, sizeof text - 1);
    real_close(fd);
    if (length < 0 || !strcmp(text, control_text)) return;
    memcpy(control_text, text, sizeof text);
    rule_count = 0;
    slow_ms = 0;
    total = others = grabs = 0;
    memset(counts, 0, sizeof counts);
    char *rest = text;
    for (char *line; (line = strsep(&rest, "\n"));) {
        char kind[16], error[16], on[8] = "";
        long nth;
        if (sscanf(line, "slow %ld", &slow_ms) == 1 || sscanf(line, "space %lld %lld", &total, &others) == 2) continue;
        if (sscanf(line, "full %lld %lld", &total, &grabs) == 2) {
            others = total - taken(root, 1);
            continue;
        }
        if (sscanf(line, "fail %15s %ld %15s %7s", kind, &nth, error, on) < 3) {
            if (*line) abort();
            continue;
        }
        int k = 0, e = 0, known = (int)(sizeof errors / sizeof *errors);
        while (k < KINDS && strcmp(kinds[k], kind)) k++;
        while (e < known && strcmp(errors[e].name, error)) e++;
        if (k == KINDS || e == known || rule_count == RULES) abort();
        rules[rule_count].kind = (enum kind)k;
        rules[rule_count].nth = nth;
        rules[rule_count].error = errors[e].number;
        rules[rule_count++].on = *on != 0;
    }
}

/* Counts an operation; the error that it is to fail with, or 0. */
static int counted(enum kind kind) {
    read_rules();
    counts[kind]++;
    if (kind != FSYNC) counts[CHANGE]++;
    for (int i = 0; i < rule_count; i++) {
        if (rules[i].kind != kind && (rules[i].kind != CHANGE || kind == FSYNC)) continue;
        long count = counts[rules[i].kind];
        if (count != rules[i].nth && (count < rules[i].nth || !rules[i].on)) continue;
        char used[sizeof root + 8];
        snprintf(used, sizeof used, "%s.used", control);
        int fd = real_open(used, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
        if (fd >= 0) real_close(fd);
        return rules[i].error;
    }
    return 0;
}

static long long free_bytes(void) {
    long long rest = total - others - taken(root, 1);
    if (rest <= 0) return 0;
    if (grabs-- <= 0) return rest;
    others += rest;
    return 0;
}

/* How much of a write fits on the disk. */
static size_t fits(int fd, off_t offset, size_t length) {
    struct stat found;
    if (!total || fstat(fd, &found)) return length;
    off_t held = (found.st_size + BLOCK - 1) / BLOCK * BLOCK;
    if (offset + (off_t)length <= held) return length;
    off_t end = held + free_bytes() / BLOCK * BLOCK;
    if (end <= offset) return 0;
    return offset + (off_t)length <= end ? length : (size_t)(end - offset);
}

static ssize_t put(int fd, const char *path, const void *bytes, size_t length, off_t offset) {
    int error = counted(WRITE);
    size_t can = fits(fd, offset, length);
    if (error > 0 || !can) {
        errno = error > 0 ? error : ENOSPC;
        return -1;
    }
    if (error < 0) can = length / 2;
    ssize_t written = can ? real_pwrite(fd, bytes, can, offset) : 0;
    int why = errno;
    if (written > 0) note('W', path, offset, bytes, (size_t)written);
    errno = error < 0 ? EIO : why;
    return error < 0 ? -1 : written;
}

ssize_t write(int fd, const void *bytes, size_t length) {
    const char *path = tracked(fd);
    if (!path) return real_write(fd, bytes, length);
    pthread_mutex_lock(&lock);
    off_t offset = lseek(fd, 0, SEEK_CUR);
    ssize_t written = put(fd, path, bytes, length, offset);
    int why = errno;
    if (written > 0) lseek(fd, offset + written, SEEK_SET);
    pthread_mutex_unlock(&lock);
    errno = why;
    return written;
}

ssize_t pwrite(int fd, const void *bytes, size_t length, off_t offset) {
    const char *path = tracked(fd);
    if (!path) return real_pwrite(fd, bytes, length, offset);
    pthread_mutex_lock(&lock);
    ssize_t written = put(fd, path, bytes, length, offset);
    int why = errno;
    pthread_mutex_unlock(&lock);
    errno = why;
    return written;
}

ssize_t pwrite64(int fd, const void *bytes, size_t length, off64_t offset) { return pwrite(fd, bytes, length, offset); }

static int open_below(const char *path, int flags, mode_t mode) {
    const char *name = below(path);
    if (!name) return real_open(path, flags, mode);
    pthread_mutex_lock(&lock);
    int new = (flags & O_CREAT) && access(path, F_OK);
    int changes = (flags & O_ACCMODE) != O_RDONLY;
    int error = counted(OPEN);
    /* What only reads can be opened on a disk that is read-only, and needs no space. */
    if (error && (changes || error == EIO) && (new || (error != ENOSPC && error != EDQUOT))) {
        pthread_mutex_unlock(&lock);
        errno = error < 0 ? EIO : error;
        return -1;
    }
    int fd = real_open(path, flags, mode);
    int why = errno;
    if (fd >= FDS) abort();
    if (fd >= 0) {
        free(paths[fd]);
        paths[fd] = strdup(name);
        if (new) note('C', name, 0, NULL, 0);
        else if (flags & O_TRUNC) note('T', name, 0, NULL, 0);
    }
    pthread_mutex_unlock(&lock);
    errno = why;
    return fd;
}

#define OPENS(name) \
    int name(const char *path, int flags, ...) { \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest); \
        return open_below(path, flags, mode); \
    }
OPENS(open)
OPENS(open64)

int close(int fd) {
    if (tracked(fd)) {
        pthread_mutex_lock(&lock);
        free(paths[fd]);
        paths[fd] = NULL;
        pthread_mutex_unlock(&lock);
    }
    return real_close(fd);
}

int fsync(int fd) {
    REAL(fsync);
    const char *path = tracked(fd);
    if (!path) return real(fd);
    pthread_mutex_lock(&lock);
    int error = counted(FSYNC);
    long wait_ms = slow_ms;
    pthread_mutex_unlock(&lock);
    struct timespec wait = {wait_ms / 1000, wait_ms % 1000 * 1000000};
    nanosleep(&wait, NULL);
    pthread_mutex_lock(&lock);
    struct stat found;
    fstat(fd, &found);
    int directory = S_ISDIR(found.st_mode);
    if (!error) note(directory ? 'D' : 'S', path, 0, NULL, 0);
    /* File systems journal their directories: what is in one is not forgotten because an fsync failed. */
    else if (!directory) note('F', path, 0, NULL, 0);
    pthread_mutex_unlock(&lock);
    errno = error < 0 ? EIO : error;
    return error ? -1 : 0;
}

int fdatasync(int fd) { return fsync(fd); }

int ftruncate(int fd, off_t length) {
    REAL(ftruncate);
    const char *path = tracked(fd);
    if (!path) return real(fd, length);
    pthread_mutex_lock(&lock);
    int error = counted(TRUNCATE), done = -1;
    if (error) errno = error < 0 ? EIO : error;
    else if (!(done = real(fd, length))) note('T', path, length, NULL, 0);
    int why = errno;
    pthread_mutex_unlock(&lock);
    errno = why;
    return done;
}

int ftruncate64(int fd, off64_t length) { return ftruncate(fd, length); }

/* Of what it allocates nothing has to last. */
int fallocate(int fd, int mode, off_t offset, off_t length) {
    REAL(fallocate);
    if (!tracked(fd)) return real(fd, mode, offset, length);
    pthread_mutex_lock(&lock);
    int error = counted(WRITE), done = -1;
    if (error) errno = error < 0 ? EIO : error;
    else if (fits(fd, offset, (size_t)length) < (size_t)length) errno = ENOSPC;
    else done = real(fd, mode, offset, length);
    int why = errno;
    pthread_mutex_unlock(&lock);
    errno = why;
    return done;
}

int fallocate64(int fd, int mode, off64_t offset, off64_t length) { return fallocate(fd, mode, offset, length); }

int unlink(const char *path) {
    REAL(unlink);
    const char *name = below(path);
    if (!name) return real(path);
    pthread_mutex_lock(&lock);
    int error = counted(UNLINK), done = -1;
    if (error) errno = error < 0 ? EIO : error;
    else if (!(done = real(path))) note('U', name, 0, NULL, 0);
    int why = errno;
    pthread_mutex_unlock(&lock);
    errno = why;
    return done;
}

int mkdir(const char *path, mode_t mode) {
    REAL(mkdir);
    const char *name = below(path);
    if (!name) return real(path, mode);
    pthread_mutex_lock(&lock);
    int error = counted(MKDIR), done = -1;
    if (error) errno = error < 0 ? EIO : error;
    else if (!(done = real(path, mode))) note('M', name, 0, NULL, 0);
    int why = errno;
    pthread_mutex_unlock(&lock);
    errno = why;
    return done;
}

int statvfs64(const char *path, struct statvfs64 *space) {
    REAL(statvfs64);
    int done = real(path, space);
    if (done || !below(path)) return done;
    pthread_mutex_lock(&lock);
    read_rules();
    if (total) {
        space->f_bsize = space->f_frsize = BLOCK;
        space->f_blocks = (fsblkcnt64_t)(total / BLOCK);
        space->f_bfree = space->f_bavail = (fsblkcnt64_t)(free_bytes() / BLOCK);
    }
    pthread_mutex_unlock(&lock);
    return 0;
}

int statvfs(const char *path, struct statvfs *space) { return statvfs64(path, (struct statvfs64 *)space); }
