// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What SMB requests change of a file's metadata.
 *
 * fsnotify reports a change of times, attributes, owner, security descriptor or
 * extended attributes as ATTRIB, without saying which. So an SMB request records
 * what it changes between ksmbd_notify_begin() and ksmbd_notify_end(): a cause.
 * The daemon fetches the causes after it has read its queue. The cause of every
 * event that it has read there has ended by then, or is still running.
 */

#include <linux/exportfs.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <linux/fsnotify.h>
#include <linux/ktime.h>
#include <linux/sched.h>
#include <linux/stat.h>
#include <linux/xattr.h>
#include <net/netlink.h>

#include "notify_impl.h"
#include "xattr.h"

static DEFINE_SPINLOCK(cause_lock);	/* nothing else is locked under it */
static LIST_HEAD(causes_running);
/* Those that have ended and were not fetched; the latest, if too many. */
static struct ksmbd_notify_cause causes[KSMBD_NOTIFY_MAX_CAUSES];
static unsigned int causes_first, causes_count;
static u64 causes_lost;			/* when the last of the others ended */

/* Whether fsnotify has anybody to tell of what @mask says of @dentry. */
static bool is_watched(const struct dentry *dentry, u32 mask)
{
	const struct inode *inode = d_inode(dentry);

	if (!ksmbd_notify_watching())
		return false;
	return dentry->d_flags & DCACHE_FSNOTIFY_PARENT_WATCHED ||
	       (inode->i_fsnotify_mask | inode->i_sb->s_fsnotify_mask) & mask;
}

static bool is_same_file(const struct ksmbd_notify_cause *a,
			 const struct ksmbd_notify_cause *b)
{
	return a->handle_bytes == b->handle_bytes &&
	       a->handle_type == b->handle_type &&
	       !memcmp(a->handle, b->handle, a->handle_bytes);
}

/**
 * ksmbd_notify_begin() - metadata is about to be changed
 * @cause:	what is known of it until ksmbd_notify_end()
 * @dentry:	the file
 * @filter:	completion filter of what will change; 0 if nobody is to be told
 *
 * What is begun before the end of another one, of the same file by the same
 * thread, is part of that.
 */
void ksmbd_notify_begin(struct ksmbd_notify_cause *cause,
			const struct dentry *dentry, u32 filter)
{
	int words = sizeof(cause->handle) / sizeof(u32), type;
	struct ksmbd_notify_cause *other;

	cause->thread = 0;
	if (!is_watched(dentry, FS_ATTRIB))
		return;
	type = exportfs_encode_fid(d_inode(dentry), (struct fid *)cause->handle,
				   &words);
	if (type < 0 || type == FILEID_INVALID)
		return;
	cause->handle_bytes = words * sizeof(u32);
	cause->handle_type = type;
	cause->filter = filter;

	spin_lock(&cause_lock);
	list_for_each_entry(other, &causes_running, entry)
		if (other->thread == task_pid_nr(current) &&
		    is_same_file(other, cause))
			goto out;
	cause->thread = task_pid_nr(current);
	cause->begun = ktime_get_ns();
	list_add_tail(&cause->entry, &causes_running);
out:
	spin_unlock(&cause_lock);
}

/**
 * ksmbd_notify_begin_xattr() - an extended attribute is about to be changed
 * @cause:	as of ksmbd_notify_begin()
 * @dentry:	the file
 * @name:	the attribute's name
 * @value:	what it is set to, NULL if it is made empty or removed
 */
void ksmbd_notify_begin_xattr(struct ksmbd_notify_cause *cause,
			      const struct dentry *dentry, const char *name,
			      const void *value)
{
	u32 filter = FILE_NOTIFY_CHANGE_EA;

	if (!strcmp(name, XATTR_NAME_DOS_ATTRIBUTE))
		filter = FILE_NOTIFY_CHANGE_ATTRIBUTES;
	else if (!strcmp(name, XATTR_NAME_SD))
		filter = FILE_NOTIFY_CHANGE_SECURITY;
	else if (!strncmp(name, XATTR_NAME_STREAM, XATTR_NAME_STREAM_LEN))
		filter = value ? FILE_NOTIFY_CHANGE_STREAM_SIZE |
				 FILE_NOTIFY_CHANGE_STREAM_WRITE :
				 FILE_NOTIFY_CHANGE_STREAM_NAME;
	ksmbd_notify_begin(cause, dentry, filter);
}

/**
 * ksmbd_notify_end() - metadata has been changed
 * @cause:	what was begun, or zeros
 */
void ksmbd_notify_end(struct ksmbd_notify_cause *cause)
{
	if (!cause->thread)
		return;

	spin_lock(&cause_lock);
	list_del(&cause->entry);
	cause->ended = ktime_get_ns();
	if (causes_count == KSMBD_NOTIFY_MAX_CAUSES) {
		causes_lost = causes[causes_first].ended;
		causes_first = (causes_first + 1) % KSMBD_NOTIFY_MAX_CAUSES;
		causes_count--;
	}
	causes[(causes_first + causes_count++) % KSMBD_NOTIFY_MAX_CAUSES] =
		*cause;
	spin_unlock(&cause_lock);
	cause->thread = 0;
}

/**
 * ksmbd_notify_basic_filter() - what a change of DOS attributes is told as
 * @buffer:	what SET_INFO asks for, a struct file_basic_info
 *
 * Return:	its completion filter
 */
u32 ksmbd_notify_basic_filter(const void *buffer)
{
	const struct file_basic_info *info = buffer;

	return (info->Attributes ? FILE_NOTIFY_CHANGE_ATTRIBUTES : 0) |
	       (info->CreationTime ? FILE_NOTIFY_CHANGE_CREATION : 0);
}

/**
 * ksmbd_notify_begin_times() - times are about to be set
 * @cause:	as of ksmbd_notify_begin()
 * @path:	the file, its inode locked
 * @attrs:	what is about to be set
 *
 * fsnotify tells the setting of one time alone as reading, or as writing, which
 * have no cause. So both are set, one of them to what it is. The filesystem is
 * asked for that: where another machine or a program serves the file, the time
 * in the inode may be an old one.
 */
void ksmbd_notify_begin_times(struct ksmbd_notify_cause *cause,
			      const struct path *path, struct iattr *attrs)
{
	unsigned int both = ATTR_ATIME | ATTR_MTIME;
	struct kstat stat;
	u32 filter = 0;

	if (attrs->ia_valid & ATTR_ATIME)
		filter |= FILE_NOTIFY_CHANGE_LAST_ACCESS;
	if (attrs->ia_valid & ATTR_MTIME)
		filter |= FILE_NOTIFY_CHANGE_LAST_WRITE;
	ksmbd_notify_begin(cause, path->dentry, filter);
	if (!filter || (attrs->ia_valid & both) == both ||
	    !is_watched(path->dentry, FS_ATTRIB | FS_MODIFY | FS_ACCESS) ||
	    vfs_getattr(path, &stat, STATX_ATIME | STATX_MTIME,
			AT_STATX_FORCE_SYNC))
		return;
	if (!(attrs->ia_valid & ATTR_ATIME)) {
		attrs->ia_atime = stat.atime;
		attrs->ia_valid |= ATTR_ATIME | ATTR_ATIME_SET;
	}
	if (!(attrs->ia_valid & ATTR_MTIME)) {
		attrs->ia_mtime = stat.mtime;
		attrs->ia_valid |= ATTR_MTIME | ATTR_MTIME_SET;
	}
}

/**
 * ksmbd_notify_allocate() - reserve what CREATE asks to be reserved
 * @filp:	the file, which nobody else has a handle of yet
 * @size:	in bytes
 * @created:	whether it is new: then that is told with its creation, and not
 *		as a write to it
 *
 * Return:	0 or a negative errno
 */
int ksmbd_notify_allocate(struct file *filp, loff_t size, bool created)
{
	fmode_t swap;
	int err;

	if (!created)
		return vfs_fallocate(filp, FALLOC_FL_KEEP_SIZE, 0, size);

	spin_lock(&filp->f_lock);
	swap = (filp->f_mode & FMODE_FSNOTIFY_MASK) ^ FMODE_NONOTIFY;
	filp->f_mode ^= swap;
	spin_unlock(&filp->f_lock);

	err = vfs_fallocate(filp, FALLOC_FL_KEEP_SIZE, 0, size);

	spin_lock(&filp->f_lock);
	filp->f_mode ^= swap;
	spin_unlock(&filp->f_lock);
	return err;
}

static int put_cause(struct sk_buff *msg,
		     const struct ksmbd_notify_cause *cause, u64 ended)
{
	struct nlattr *nest = nla_nest_start(msg, KSMBD_NOTIFY_A_CAUSES_CAUSE);

	if (!nest)
		return -EMSGSIZE;
	if (nla_put_u32(msg, KSMBD_NOTIFY_A_CAUSE_THREAD, cause->thread) ||
	    nla_put_u32(msg, KSMBD_NOTIFY_A_CAUSE_COMPLETION_FILTER,
			cause->filter) ||
	    nla_put(msg, KSMBD_NOTIFY_A_CAUSE_FILE,
		    sizeof(struct file_handle) + cause->handle_bytes,
		    &cause->handle_bytes) ||
	    nla_put_u64_64bit(msg, KSMBD_NOTIFY_A_CAUSE_BEGUN, cause->begun,
			      KSMBD_NOTIFY_A_CAUSE_PAD) ||
	    nla_put_u64_64bit(msg, KSMBD_NOTIFY_A_CAUSE_ENDED, ended,
			      KSMBD_NOTIFY_A_CAUSE_PAD)) {
		nla_nest_cancel(msg, nest);
		return -EMSGSIZE;
	}
	nla_nest_end(msg, nest);
	return 0;
}

/**
 * ksmbd_notify_put_causes() - tell the causes of changes
 * @msg:	to the daemon, with room for KSMBD_NOTIFY_MAX_CAUSES
 *
 * Those that still run are among them as if they ended now, and will be among
 * the next as well. If there are more, it is told when the last of them ended.
 */
void ksmbd_notify_put_causes(struct sk_buff *msg)
{
	struct nlattr *attr = nla_reserve_64bit(msg, KSMBD_NOTIFY_A_CAUSES_LOST,
						sizeof(u64),
						KSMBD_NOTIFY_A_CAUSES_PAD);
	struct ksmbd_notify_cause *cause;
	u64 now, lost;

	spin_lock(&cause_lock);
	now = ktime_get_ns();
	lost = causes_lost;
	list_for_each_entry(cause, &causes_running, entry)
		if (put_cause(msg, cause, now))
			lost = now;
	for (; causes_count; causes_count--) {
		cause = &causes[causes_first];
		if (put_cause(msg, cause, cause->ended))
			lost = max(lost, cause->ended);
		causes_first = (causes_first + 1) % KSMBD_NOTIFY_MAX_CAUSES;
	}
	spin_unlock(&cause_lock);
	if (attr)
		memcpy(nla_data(attr), &lost, sizeof(lost));
}
