/** The new-session form while the page is open: leaving the view and coming back loses nothing. */

import { EMPTY_FORM, type SessionForm } from "./form";

/** A form of its own, which shares nothing with {@link EMPTY_FORM}. */
export const emptyForm = (): SessionForm => ({ ...EMPTY_FORM, ssh: { ...EMPTY_FORM.ssh } });

export const draft = $state<{ form: SessionForm }>({ form: emptyForm() });
