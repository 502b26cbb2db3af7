/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What tests of TDX need beside TDs: files of the kernel, ioctls in threads of
 * their own, and a way to hold them at a known place.
 */
#ifndef SELFTEST_KVM_TDX_UTIL_H
#define SELFTEST_KVM_TDX_UTIL_H

#include <pthread.h>

#include "tdx.h"

/* Seconds within which what is not blocked gets done. */
#define PATIENCE		10

/* Read a whole (small) file.  NULL if there is none, else freed by the caller. */
char *read_file(const char *path);

/* Write @text to a file that exists.  0 or a negative errno. */
int write_file(const char *path, const char *text);

/* The number that a file begins with, @missing if there is none. */
long read_number(const char *path, long missing);

void *map_pages(int nr, int prot);
void unmap_pages(void *pages, int nr);

/*
 * Blocking: an untouched page whose first access by KVM waits until it is
 * released, and so holds KVM at a known place with known locks.
 */
struct blocker {
	void *page;
	int uffd;
};

#define NO_BLOCKER	"no userfaultfd that handles faults of the kernel"

/* Make a blocker of @page.  False if the kernel has none. */
bool blocker_init(struct blocker *blocker, void *page);

/* Wait until somebody is blocked. */
void blocker_wait(struct blocker *blocker);

/* Let whoever is blocked go on, and find @contents in the page. */
void blocker_release(struct blocker *blocker, const void *contents);

void blocker_free(struct blocker *blocker);

/* An ioctl in a thread of its own. */
struct call {
	int fd;
	unsigned long request;
	void *arg;
	pthread_t thread;
	pid_t tid;
	int ret;
	int error;
};

/* A thread, or the test ends: the library has this from Linux 7.3 on only. */
void thread_start(pthread_t *thread, void *(*function)(void *arg), void *arg);
void thread_join(pthread_t thread);

void call_start(struct call *call, int fd, unsigned long request, void *arg);
void tdx_call_start(struct call *call, int fd, struct kvm_tdx_cmd *cmd);

/* Returns 0 or the errno. */
int call_join(struct call *call);

/* Wait until task @tid sleeps for a lock, which signals do not end. */
void wait_for_lock_wait(pid_t tid);

/* Wait until process @pid is dead, of @signal and of nothing else. */
void wait_for_death(pid_t pid, int signal);

#endif /* SELFTEST_KVM_TDX_UTIL_H */
