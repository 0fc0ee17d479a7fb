// Preloaded by kills.py: counts file operations below a directory and kills the process
// at the n-th of them; where that is a write, half of it may reach the file.
//
//   gcc -shared -fPIC -O2 -o killer.so killer.c -ldl

#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char root[PATH_MAX];
static long at, tear;
static long count;

// Called through ctypes: which directory, at which operation, half of a write or none.
void killer_arm(const char *directory, long operation, long torn) {
  strncpy(root, directory, sizeof root - 1);
  at = operation;
  tear = torn;
  count = 0;
}

long killer_count(void) { return count; }

static int below(int directory, const char *path) {
  char text[PATH_MAX];
  if (!root[0] || !path) return 0;
  if (path[0] == '/') return strncmp(path, root, strlen(root)) == 0;
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
  ssize_t size = readlink(directory == AT_FDCWD ? "/proc/self/cwd" : link, text,
                          sizeof text - 1);
  if (size < 0) return 0;
  text[size] = 0;
  return strncmp(text, root, strlen(root)) == 0;
}

static int open_below(int descriptor) {
  char link[64], text[PATH_MAX];
  if (!root[0]) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
  ssize_t size = readlink(link, text, sizeof text - 1);
  if (size < 0) return 0;
  text[size] = 0;
  return strncmp(text, root, strlen(root)) == 0;
}

static int due(void) { return __atomic_add_fetch(&count, 1, __ATOMIC_SEQ_CST) == at; }

static void end(void) {
  kill(getpid(), SIGKILL);
  for (;;) pause();
}

#define REAL(type, name, ...)                        \
  static type (*real)(__VA_ARGS__);                  \
  if (!real) real = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

#define PATH_CALL(name, parameters, arguments, directory, path) \
  int name parameters {                                         \
    static int(*real) parameters;                               \
    if (!real) real = (int(*) parameters)dlsym(RTLD_NEXT, #name); \
    if (below(directory, path) && due()) end();                 \
    return real arguments;                                      \
  }

PATH_CALL(rename, (const char *a, const char *b), (a, b), AT_FDCWD, b)
PATH_CALL(renameat, (int d, const char *a, int e, const char *b), (d, a, e, b), e, b)
PATH_CALL(renameat2, (int d, const char *a, int e, const char *b, unsigned f),
          (d, a, e, b, f), e, b)
PATH_CALL(unlink, (const char *a), (a), AT_FDCWD, a)
PATH_CALL(unlinkat, (int d, const char *a, int f), (d, a, f), d, a)
PATH_CALL(rmdir, (const char *a), (a), AT_FDCWD, a)
PATH_CALL(mkdir, (const char *a, mode_t m), (a, m), AT_FDCWD, a)
PATH_CALL(mkdirat, (int d, const char *a, mode_t m), (d, a, m), d, a)

int fsync(int descriptor) {
  REAL(int, "fsync", int);
  if (open_below(descriptor) && due()) end();
  return real(descriptor);
}

int ftruncate(int descriptor, off_t size) {
  REAL(int, "ftruncate", int, off_t);
  if (open_below(descriptor) && due()) end();
  return real(descriptor, size);
}
int ftruncate64(int descriptor, off_t size) { return ftruncate(descriptor, size); }

#define OPEN_CALL(name)                                                     \
  int name(const char *path, int flags, ...) {                              \
    REAL(int, #name, const char *, int, ...);                               \
    va_list more;                                                           \
    va_start(more, flags);                                                  \
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0; \
    va_end(more);                                                           \
    if (flags & (O_WRONLY | O_RDWR | O_CREAT))                              \
      if (below(AT_FDCWD, path) && due()) end();                            \
    return real(path, flags, mode);                                         \
  }
OPEN_CALL(open)
OPEN_CALL(open64)

#define OPENAT_CALL(name)                                                   \
  int name(int directory, const char *path, int flags, ...) {               \
    REAL(int, #name, int, const char *, int, ...);                          \
    va_list more;                                                           \
    va_start(more, flags);                                                  \
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0; \
    va_end(more);                                                           \
    if (flags & (O_WRONLY | O_RDWR | O_CREAT))                              \
      if (below(directory, path) && due()) end();                           \
    return real(directory, path, flags, mode);                              \
  }
OPENAT_CALL(openat)
OPENAT_CALL(openat64)

ssize_t write(int descriptor, const void *data, size_t size) {
  REAL(ssize_t, "write", int, const void *, size_t);
  if (open_below(descriptor) && due()) {
    if (tear) real(descriptor, data, size / 2);
    end();
  }
  return real(descriptor, data, size);
}

#define PWRITE_CALL(name)                                                      \
  ssize_t name(int descriptor, const void *data, size_t size, off_t offset) {  \
    REAL(ssize_t, #name, int, const void *, size_t, off_t);                    \
    if (open_below(descriptor) && due()) {                                     \
      if (tear) real(descriptor, data, size / 2, offset);                      \
      end();                                                                   \
    }                                                                          \
    return real(descriptor, data, size, offset);                               \
  }
PWRITE_CALL(pwrite)
PWRITE_CALL(pwrite64)

ssize_t writev(int descriptor, const struct iovec *parts, int number) {
  REAL(ssize_t, "writev", int, const struct iovec *, int);
  if (open_below(descriptor) && due()) {
    if (tear) real(descriptor, parts, number / 2);
    end();
  }
  return real(descriptor, parts, number);
}
