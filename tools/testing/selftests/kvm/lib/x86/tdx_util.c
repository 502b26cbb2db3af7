// SPDX-License-Identifier: GPL-2.0
#include <linux/userfaultfd.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "tdx_util.h"

char *read_file(const char *path)
{
	size_t size = 0, room = 4096;
	char *text = NULL;
	ssize_t n;
	int fd;

	fd = open(path, O_RDONLY);
	if (fd < 0)
		return NULL;

	do {
		text = realloc(text, room + 1);
		TEST_ASSERT(text, "-ENOMEM when reading %s", path);
		n = read(fd, text + size, room - size);
		TEST_ASSERT(n >= 0, __KVM_SYSCALL_ERROR("read()", (int)n));
		size += n;
		if (size == room)
			room *= 2;
	} while (n);

	kvm_close(fd);
	text[size] = '\0';
	return text;
}

int write_file(const char *path, const char *text)
{
	ssize_t n;
	int fd, ret;

	fd = open(path, O_WRONLY);
	if (fd < 0)
		return -errno;

	n = write(fd, text, strlen(text));
	ret = n < 0 ? -errno : 0;
	kvm_close(fd);
	return ret;
}

long read_number(const char *path, long missing)
{
	char *text = read_file(path);
	long value;

	if (!text)
		return missing;
	value = strtol(text, NULL, 0);
	free(text);
	return value;
}

void *map_pages(int nr, int prot)
{
	return kvm_mmap(nr * getpagesize(), prot, MAP_PRIVATE | MAP_ANONYMOUS, -1);
}

void unmap_pages(void *pages, int nr)
{
	kvm_munmap(pages, nr * getpagesize());
}

bool blocker_init(struct blocker *blocker, void *page)
{
	struct uffdio_register range = {
		.range = { .start = (u64)page, .len = getpagesize() },
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};
	struct uffdio_api api = { .api = UFFD_API };
	int ret;

	blocker->page = page;
	blocker->uffd = syscall(__NR_userfaultfd, O_CLOEXEC);
	if (blocker->uffd < 0)
		return false;

	ret = ioctl(blocker->uffd, UFFDIO_API, &api);
	TEST_ASSERT(!ret, KVM_IOCTL_ERROR(UFFDIO_API, ret));
	ret = ioctl(blocker->uffd, UFFDIO_REGISTER, &range);
	TEST_ASSERT(!ret, KVM_IOCTL_ERROR(UFFDIO_REGISTER, ret));
	return true;
}

void blocker_wait(struct blocker *blocker)
{
	struct pollfd fd = { .fd = blocker->uffd, .events = POLLIN };
	struct uffd_msg msg;

	TEST_ASSERT(poll(&fd, 1, PATIENCE * 1000) == 1, "Nobody touched the page");
	TEST_ASSERT(read(blocker->uffd, &msg, sizeof(msg)) == sizeof(msg) &&
		    msg.event == UFFD_EVENT_PAGEFAULT, "Not a page fault");
}

void blocker_release(struct blocker *blocker, const void *contents)
{
	struct uffdio_copy copy = {
		.dst = (u64)blocker->page,
		.src = (u64)contents,
		.len = getpagesize(),
	};
	int ret;

	ret = ioctl(blocker->uffd, UFFDIO_COPY, &copy);
	TEST_ASSERT(!ret, KVM_IOCTL_ERROR(UFFDIO_COPY, ret));
}

void blocker_free(struct blocker *blocker)
{
	kvm_close(blocker->uffd);
}

void thread_start(pthread_t *thread, void *(*function)(void *arg), void *arg)
{
	int error = pthread_create(thread, NULL, function, arg);

	TEST_ASSERT(!error, "pthread_create: %s", strerror(error));
}

void thread_join(pthread_t thread)
{
	int error = pthread_join(thread, NULL);

	TEST_ASSERT(!error, "pthread_join: %s", strerror(error));
}

static void *call_thread(void *arg)
{
	struct call *call = arg;

	WRITE_ONCE(call->tid, gettid());
	call->ret = ioctl(call->fd, call->request, call->arg);
	call->error = call->ret < 0 ? errno : 0;
	return NULL;
}

void call_start(struct call *call, int fd, unsigned long request, void *arg)
{
	*call = (struct call) { .fd = fd, .request = request, .arg = arg };
	thread_start(&call->thread, call_thread, call);
	while (!READ_ONCE(call->tid))
		usleep(100);
}

void tdx_call_start(struct call *call, int fd, struct kvm_tdx_cmd *cmd)
{
	call_start(call, fd, KVM_MEMORY_ENCRYPT_OP, cmd);
}

int call_join(struct call *call)
{
	struct timespec deadline;

	clock_gettime(CLOCK_REALTIME, &deadline);
	deadline.tv_sec += PATIENCE;
	TEST_ASSERT(!pthread_timedjoin_np(call->thread, NULL, &deadline),
		    "ioctl 0x%lx still does not return", call->request);
	return call->error;
}

void wait_for_lock_wait(pid_t tid)
{
	char path[64], *stat, *state;
	int i;

	snprintf(path, sizeof(path), "/proc/%d/stat", tid);
	for (i = 0; i < PATIENCE * 100; i++) {
		stat = read_file(path);
		TEST_ASSERT(stat, "Task %d is gone, and should have been blocked", tid);
		/* The name before it may have blanks and parentheses of its own. */
		state = strrchr(stat, ')');
		TEST_ASSERT(state && state[1] == ' ', "No state in %s", stat);
		if (state[2] == 'D') {
			free(stat);
			return;
		}
		free(stat);
		usleep(10000);
	}
	TEST_FAIL("Task %d is not blocked", tid);
}

void wait_for_death(pid_t pid, int signal)
{
	int i, status;
	pid_t ret;

	for (i = 0; i < PATIENCE * 100; i++) {
		ret = waitpid(pid, &status, WNOHANG);
		TEST_ASSERT(ret >= 0, __KVM_SYSCALL_ERROR("waitpid()", ret));
		if (ret) {
			TEST_ASSERT(WIFSIGNALED(status) && WTERMSIG(status) == signal,
				    "Process %d ended with status 0x%x", pid, status);
			return;
		}
		usleep(10000);
	}
	TEST_FAIL("Process %d survives signal %d", pid, signal);
}
