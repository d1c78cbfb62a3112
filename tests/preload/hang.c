/* A disk that hangs: no fsync returns for as long as the file named by HANG_WHILE exists. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <unistd.h>

static int hanging(const char *name, int fd)
{
	const char *file = getenv("HANG_WHILE");
	int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);

	while (file && access(file, F_OK) == 0)
		usleep(10000);
	return real(fd);
}

int fsync(int fd)
{
	return hanging("fsync", fd);
}

int fdatasync(int fd)
{
	return hanging("fdatasync", fd);
}
